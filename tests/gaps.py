"""The gaps of the by-token copy by sorting, for `ingest.extract.sorting` to agree with."""

from __future__ import annotations

import numpy as np

from featuredb.store.by_token import TokenRows
from featuredb.store.feature_order import FeatureOrder


def to_gaps(rows: TokenRows, order: FeatureOrder) -> TokenRows:
    """Tokens with each one's features as gaps along the order, ascending."""
    ranks = order.ranks[rows.feature_id]
    token = np.repeat(np.arange(len(rows.offsets) - 1), np.diff(rows.offsets))
    sort = np.lexsort((ranks, token))
    gaps = ranks[sort].astype(np.int64)
    first = np.concatenate(([True], token[1:] != token[:-1]))[: len(gaps)]
    gaps = np.where(first, gaps, np.diff(gaps, prepend=0))
    return rows._replace(feature_id=gaps.astype(np.uint32), activation=rows.activation[sort])
