"""How pooled activations go with a number per unit.

**Spearman's correlation** of the pooled activation, 0 where the feature does not fire, and the
target: Pearson's of their mid-ranks. Its p is of Student's t with n - 2 degrees of freedom, as
scipy's ``spearmanr`` has it. That tail is far too light where the target has many ties and the
feature is rare, so q is of p-values corrected by the third moment of the permutation distribution,
``n / ((n - 1)(n - 2))`` times the two sums of cubes, and of no less than the share of permutations
that are as extreme as can be (as in `queries.contrasts.two_sets`).

**t.** Student's test, of equal variances, of the target where the feature fires against where it
does not: scipy's ``ttest_ind``.

**Separation.** The mean target of the `STRONGEST` units of the highest pooled activation, or of all
that it fires in, less the mean where it does not fire: HypotheSAEs' separation score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from queries.pooled import Int64, Pairs, ordered
from queries.tails import log_factorials, normal_deviate, skewed, two_sided_t

Float64 = npt.NDArray[np.float64]

STRONGEST = 100


class Trend(NamedTuple):
    """Of each feature, float64 [f]. NaN where undefined. active: units it is active in. skew: third
    standardized moment of the correlation's permutation distribution. least_p: what p can be at
    least, on the side where the correlation is."""

    active: Float64
    spearman: Float64
    skew: Float64
    least_p: Float64
    t: Float64
    separation: Float64

    def p(self, n: int) -> Float64:
        """Of Spearman's correlation over n units, NaN where it has none."""
        r = np.nan_to_num(self.spearman)
        df = np.full(len(r), n - 2.0)
        with np.errstate(divide="ignore"):
            t = r * np.sqrt(df / np.maximum(1 - r * r, 0))
        return np.where(np.isnan(self.spearman), np.nan, two_sided_t(t, df))

    def evidence(self, n: int) -> Float64:
        """The standard normal deviate of the corrected p, no further from 0 than that of `p`."""
        r = np.nan_to_num(self.spearman)
        of_t = normal_deviate(np.nan_to_num(self.p(n), nan=1.0))
        return np.sign(r) * np.minimum(of_t, np.abs(skewed(r * math.sqrt(n - 1), self.skew)))


def trends(parts: Sequence[Trend]) -> Trend:
    """The features of several pieces, one after another."""
    return Trend(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def midranks(values: Float64) -> Float64:
    """Mid-ranks less their mean, [n]."""
    _, back, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2 - (len(values) + 1) / 2)[back]


def trend(pairs: Pairs, target: Float64, ranks: Float64) -> Trend:
    """Correlate every feature of a piece.

    target: of each unit, NaN where it has none, which leaves the unit out. ranks: `midranks` of
    those it has, anything elsewhere.
    """
    n_features = pairs.end - pairs.first
    known = ~np.isnan(target)
    n = int(known.sum())
    inside = known[pairs.unit]
    unit, value, feature = pairs.unit[inside], pairs.value[inside], pairs.feature[inside]
    active = np.bincount(feature, minlength=n_features).astype(np.float64)
    place = feature.astype(np.uint64) << np.uint64(32) | ordered(value)
    # One entry that stands for all units in which the feature does not fire.
    of_ranks = np.bincount(feature, ranks[unit], minlength=n_features)
    zero = ordered(np.zeros(1, np.float32))[0]
    silent = np.arange(n_features, dtype=np.uint64) << np.uint64(32) | zero
    place = np.concatenate([place, silent])
    weight = np.concatenate([np.ones(len(unit)), n - active])
    y = np.concatenate([ranks[unit], -of_ranks])
    order = np.argsort(place, kind="stable")
    place, weight, y = place[order], weight[order], y[order]
    first = np.flatnonzero(np.concatenate(([True], place[1:] != place[:-1])))
    ties, y = np.add.reduceat(weight, first), np.add.reduceat(y, first)
    owner = (place[first] >> np.uint64(32)).astype(np.int64)
    x = np.cumsum(ties) - ties - owner * n + (ties + 1) / 2 - (n + 1) / 2
    covariance = np.bincount(owner, x * y, minlength=n_features)
    spread = np.bincount(owner, ties * x * x, minlength=n_features)
    with np.errstate(divide="ignore", invalid="ignore"):
        spearman = covariance / np.sqrt(spread * (ranks[known] ** 2).sum())
        cubes = np.bincount(owner, ties * x**3, minlength=n_features) * (ranks[known] ** 3).sum()
        squares = (spread * (ranks[known] ** 2).sum() / (n - 1)) ** 1.5
        skew = n / ((n - 1) * (n - 2)) * cubes / squares
    silent_mean, t = _student(feature, target[unit], active, target[known], n_features)
    top = _top_mean(feature, value, target[unit], active, n_features)
    negative = np.bincount(feature[value < 0], minlength=n_features)
    silent = (n - active).astype(np.int64)
    least_p = _least_p(ranks[known], negative, silent, covariance > 0)
    return Trend(active, np.clip(spearman, -1, 1), skew, least_p, t, top - silent_mean)


def _least_p(ranks: Float64, below: Int64, silent: Int64, up: npt.NDArray[np.bool_]) -> Float64:
    """Twice the share of permutations in which targets go as the activations do, or against them.

    The units in which a feature is silent are tied. below, silent: how many are below them, and
    they, int64 [f].
    """
    ln = log_factorials(len(ranks))
    _, sizes = np.unique(ranks, return_counts=True)

    def tied(sizes: Int64) -> Float64:
        """ln of the orders of equal targets among those of the silent, targets in runs of sizes."""
        ends = np.cumsum(sizes)
        place = np.arange(1, len(ranks) + 1) - np.repeat(ends - sizes, sizes)
        total = np.concatenate(([0.0], np.cumsum(np.log(place))))
        run_end = np.append(np.repeat(ends, sizes), len(ranks))[below]
        last = below + silent
        own: Float64 = ln[np.minimum(run_end, last) - below]
        return own + np.where(last > run_end, total[last] - total[run_end], 0.0)

    orders = ln[silent] - np.where(up, tied(sizes), tied(sizes[::-1]))
    share: Float64 = np.exp(orders + ln[sizes].sum() - ln[-1])
    return np.minimum(2 * share, 1.0)


def _student(
    feature: npt.NDArray[np.int64], y: Float64, active: Float64, every: Float64, n_features: int
) -> tuple[Float64, Float64]:
    """The mean where the feature does not fire, and t. NaN where it fires everywhere."""
    center = every.mean() if len(every) else 0.0
    y, every = y - center, every - center
    ones = np.bincount(feature, y, minlength=n_features)
    squares = np.bincount(feature, y * y, minlength=n_features)
    rest = len(every) - active
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, other = ones / active, np.where(rest > 0, (every.sum() - ones) / rest, np.nan)
        spread = squares - active * mean**2
        spread = spread + ((every * every).sum() - squares) - rest * other**2
        pooled = np.maximum(spread, 0) / (len(every) - 2)
        t = (mean - other) / np.sqrt(pooled * (1 / active + 1 / rest))
    return other + center, t


def _top_mean(
    feature: npt.NDArray[np.int64],
    value: npt.NDArray[np.float32],
    y: Float64,
    active: Float64,
    n_features: int,
) -> Float64:
    """The mean of y over each feature's units of the highest values, ties by unit."""
    order = np.lexsort((-value, feature))
    owner = feature[order]
    firsts = np.cumsum(active) - active
    chosen = np.arange(len(order)) - firsts[owner] < STRONGEST
    total = np.bincount(owner[chosen], y[order][chosen], minlength=n_features)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / np.minimum(active, STRONGEST)
