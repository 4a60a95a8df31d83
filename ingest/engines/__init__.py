"""Who runs an ingest's partitions and merges its buckets: this process, several, or a cluster.

Whoever it is runs the same two functions, `ingest.extract.partition` and
`ingest.compaction.write_bucket`, on the same plan, so the content does not depend on it; an ingest
begun by one is finished by another.
"""

from ingest.engines.choice import workers_for
from ingest.engines.workers import Workers

__all__ = ["Workers", "workers_for"]
