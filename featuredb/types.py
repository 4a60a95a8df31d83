"""The public types: the handle, the answers to questions, and the results of operations."""

from featuredb.database import Database as Database
from featuredb.steering.edits import Edit as Edit
from featuredb.store.outcomes import Compacted as Compacted
from featuredb.store.outcomes import Explained as Explained
from featuredb.store.outcomes import Labeled as Labeled
from featuredb.store.outcomes import Outcome as Outcome
from featuredb.store.outcomes import Vacuumed as Vacuumed
from featuredb.store.snapshot import Snapshot as Snapshot
from featuredb.transfer.push_pull import Transfer as Transfer
from featuredb.verification import Problem as Problem
from featuredb.verification import Report as Report
from queries.about import About as About
from queries.activations import Activations as Activations
from queries.answers import Info as Info
from queries.answers import Rows as Rows
from queries.encode import Encoded as Encoded
from queries.feature import FeatureCard as FeatureCard
from queries.find import Matches as Matches
from queries.fires import Firing as Firing
from queries.labels import Labels as Labels
from queries.near import Neighbors as Neighbors
from queries.sample_contexts import SampledContexts as SampledContexts
from queries.search import SearchHits as SearchHits
from queries.silent_contexts import SilentContexts as SilentContexts
from queries.top_contexts import TopContexts as TopContexts
