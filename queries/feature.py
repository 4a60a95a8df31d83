"""Everything the store knows about one feature."""

from __future__ import annotations

from featuredb.store.names import parse_feature
from featuredb.store.store import Store
from queries.answers import FeatureCard
from queries.near import near
from queries.top_contexts import top_contexts

CONTEXTS = 5
NEIGHBORS = 10


def feature_card(store: Store, feature: int | str) -> FeatureCard:
    """The feature's row of ``features``, its first top contexts and its nearest decoders.

    Raises `UnknownFeatureError`.
    """
    sae, number = parse_feature(store.snapshot, feature)
    return FeatureCard(
        store.features.card(sae, number),
        contexts=top_contexts(store, feature, CONTEXTS),
        neighbors=near(store, feature, NEIGHBORS),
    )
