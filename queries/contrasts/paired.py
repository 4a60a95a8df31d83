"""Units of A and B in pairs: the Wilcoxon signed-rank test of their differences.

Pairs in which a feature is pooled to the same value, 0 in both among them, are left out (Wilcoxon,
1945). The normal approximation with the tie correction, without a continuity correction: scipy's
``wilcoxon`` with ``method="asymptotic"``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from queries.pooled import Int64, Pairs

Float64 = npt.NDArray[np.float64]


class UnitPairs(NamedTuple):
    """pair: of each unit, from 0, int64, -1 of none. sign: 1 for units of A, -1 for those of B."""

    pair: Int64
    sign: npt.NDArray[np.int8]


class SignedRank(NamedTuple):
    """Of each feature, float64 [f]: the standardized statistic, positive where A has more, 0
    without a difference; and the least p that so many differences can have, `2 / 2^n`."""

    z: Float64
    least_p: Float64


def signed_rank(pairs: Pairs, matched: UnitPairs) -> SignedRank:
    """Test the differences in every feature of a piece."""
    n_features = pairs.end - pairs.first
    inside = matched.pair[pairs.unit] >= 0
    unit = pairs.unit[inside]
    feature = pairs.feature[inside]
    key = feature << 32 | matched.pair[unit]
    order = np.argsort(key, kind="stable")
    key = key[order]
    value = (pairs.value[inside].astype(np.float64) * matched.sign[unit])[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    difference = np.add.reduceat(value, first) if len(first) else value
    feature = key[first] >> 32
    some = difference != 0
    difference, feature = difference[some], feature[some]
    size = np.abs(difference)
    order = np.lexsort((size, feature))
    size, feature, above = size[order], feature[order], difference[order] > 0
    new = (np.diff(size, prepend=-1.0) != 0) | (np.diff(feature, prepend=-1) != 0)
    starts = np.flatnonzero(new)
    if not len(starts):
        return SignedRank(np.zeros(n_features), np.ones(n_features))
    ties = np.diff(starts, append=len(size)).astype(np.float64)
    owner = feature[starts]
    n = np.bincount(feature, minlength=n_features).astype(np.float64)
    before = np.cumsum(ties) - ties - (np.cumsum(n) - n)[owner]
    rank = before + (ties + 1) / 2
    positive = np.add.reduceat(above.astype(np.float64), starts)
    total = np.bincount(owner, positive * rank, minlength=n_features)
    tied = np.bincount(owner, ties**3 - ties, minlength=n_features)
    variance = n * (n + 1) * (2 * n + 1) / 24 - tied / 48
    excess = total - n * (n + 1) / 4
    z = np.divide(excess, np.sqrt(variance), out=np.zeros(n_features), where=variance > 0)
    return SignedRank(z, np.minimum(1, 2 * np.exp2(-n)))
