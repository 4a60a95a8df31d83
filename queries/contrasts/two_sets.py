"""How the pooled activations of two sets of units differ, feature by feature.

Of each feature the units of A and B are ranked by their pooled activation, 0 where it does not
fire. Ties have their mean rank. All is computed in float64 from runs of equal values.

**AUROC.** The chance that a unit of A has more than one of B, ties half: ``U / (n_a n_b)``, with
the interval of DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated
Receiver Operating Characteristic Curves, Biometrics 44, 1988.

**p.** Of the Mann-Whitney test, two-sided, by the normal approximation with the tie correction and
continuity correction (Lehmann, Nonparametrics, 1975), which is scipy's ``mannwhitneyu`` with
``method="asymptotic"``.

**Strata.** Units are compared only with units of their stratum. With weights 1 / (n + 1), which
are locally best (van Elteren, On the combination of independent two-sample tests of Wilcoxon,
1960), the statistics of the strata are added, without a continuity correction. The AUROC is the
mean of the strata's, with weights n_a n_b / (n + 1): it is 1/2 just where that statistic is 0.

**Skewness.** The normal tail is far too light where one set is small and the feature rare: a
feature on 2 documents, both among 50 of 3,000, happens once in 3,600 draws, and has z = 11. So q is
of p-values corrected by the third moment of the permutation distribution, which is exact, as by a
Pearson type III distribution (Mielke and Berry, Permutation Methods, 2007), through Wilson and
Hilferty's cube root (1931). The larger of the two p-values counts. Where the sets are of equal size
the distribution is symmetric and nothing changes.

**The least p.** No p can be smaller than twice the share of draws that are as extreme as can be:
those in which all of A has more than all of B, ties half. For one unit against 3,000 that is 1 in
1,500, and the cube root, which is of sums of many, says 1e-110.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from queries.pooled import Float32, Int32, Int64, Pairs, stable_order
from queries.tails import Z95, log_factorials, skewed, two_sided

Float64 = npt.NDArray[np.float64]


class Sides(NamedTuple):
    """Which units are compared. side: uint8 per unit, 1 in A, 2 in B, 0 in neither. stratum: int32
    per unit, from 0. n: units of A and of B in each stratum, float64 [2, strata]."""

    side: npt.NDArray[np.uint8]
    stratum: Int32
    n: Float64

    @classmethod
    def of(cls, side: npt.NDArray[np.uint8], stratum: Int32 | None = None) -> Sides:
        """Counts the units."""
        if stratum is None:
            stratum = np.zeros(len(side), np.int32)
        strata = int(stratum.max(initial=0)) + 1
        n = [np.bincount(stratum[side == which], minlength=strata) for which in (1, 2)]
        return cls(side, stratum, np.array(n, np.float64))


class Difference(NamedTuple):
    """Of each feature, float64 [f]: units it is active in, AUROC, its variance (NaN where a set
    has one unit), and the statistic: its value less the expected one, variance, third moment, and
    the logarithm of the share of draws in which it is largest, and smallest."""

    active_a: Float64
    active_b: Float64
    auroc: Float64
    auroc_variance: Float64
    excess: Float64
    variance: Float64
    third: Float64
    log_largest: Float64
    log_smallest: Float64

    def z(self, sides: Sides) -> Float64:
        """The standardized statistic, positive where A has more. 0 where it cannot vary."""
        excess = self.excess
        if sides.n.shape[1] == 1:
            half = 0.5 / (sides.n.sum() + 1)
            excess = np.sign(excess) * np.maximum(np.abs(excess) - half, 0)
        return np.divide(
            excess, np.sqrt(self.variance), out=np.zeros_like(excess), where=self.variance > 0
        )

    def p(self, sides: Sides) -> Float64:
        """See the module."""
        return two_sided(self.z(sides))

    def corrected(self, sides: Sides) -> Float64:
        """The standard normal deviate of the corrected p, no further from 0 than `z`."""
        z = self.z(sides)
        skew = np.divide(
            self.third, self.variance**1.5, out=np.zeros_like(z), where=self.variance > 0
        )
        return skewed(z, skew)

    def least_p(self) -> Float64:
        """What p can be at least, on the side where the statistic is."""
        share: Float64 = np.exp(np.where(self.excess > 0, self.log_largest, self.log_smallest))
        return np.minimum(2 * share, 1.0)

    def interval(self) -> tuple[Float64, Float64]:
        """The 95 % interval of the AUROC, NaN where it has no variance."""
        half = Z95 * np.sqrt(self.auroc_variance)
        return np.maximum(self.auroc - half, 0), np.minimum(self.auroc + half, 1)


def joined(parts: Sequence[Difference]) -> Difference:
    """The features of several pieces, one after another."""
    return Difference(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def difference(pairs: Pairs, sides: Sides) -> Difference:
    """Compare A and B in every feature of a piece."""
    n_features, strata = pairs.end - pairs.first, sides.n.shape[1]
    groups = _groups(pairs, sides)
    if not len(groups.group):
        none = np.zeros(n_features)
        variance = np.full(n_features, np.nan) if _unknown(sides) else none
        return Difference(none, none, none + 0.5, variance, *[none] * 5)
    n_a, n_b = sides.n[:, groups.group % strata]
    n = n_a + n_b
    runs = _runs(groups, n_a, n_b)
    a, b = runs.a, runs.b

    def total(of_runs: Float64, of_silent: Float64) -> Float64:
        """Summed in each group, over the runs and the units in which the feature is silent."""
        return np.add.reduceat(of_runs, runs.starts) + of_silent

    def spread(values: Float64) -> Float64:
        return np.repeat(values, runs.sizes)

    # Wins of a unit of A over B, of B over A, and a unit's rank less the mean one: ties half.
    wins_a, silent_a = a.size * b.below, a.silent * b.silent_below
    wins_b, silent_b = spread(n_a) - a.below, n_a - a.silent_below
    rank, silent_rank = a.below + b.below - spread(n / 2), a.silent_below + b.silent_below - n / 2
    ties, silent_ties = a.size + b.size, a.silent + b.silent
    u = total(wins_a, silent_a)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = u / (n_a * n_b)
        spread_a = total(wins_a * b.below, silent_a * b.silent_below) / n_b**2 - n_a * auroc**2
        spread_b = total(b.size * wins_b**2, b.silent * silent_b**2) / n_a**2 - n_b * auroc**2
        variance_auroc = np.maximum(spread_a / (n_a - 1), 0) / n_a
        variance_auroc += np.maximum(spread_b / (n_b - 1), 0) / n_b
        tied = total(ties * ties * ties, silent_ties**3) - n
        variance = n_a * n_b / 12 * (n + 1 - tied / (n * (n - 1)))
        third = total(ties * rank * rank * rank, silent_ties * silent_rank**3)
        third *= n_a * n_b * (n_b - n_a) / (n * (n - 1) * (n - 2))
        # A set of one unit in a stratum says nothing of its spread: that of the null stands for it.
        alone = (n_a < 2) | (n_b < 2)
        variance_auroc[alone] = (variance / (n_a * n_b) ** 2)[alone]
    third[n < 3] = 0
    negative = np.where(silent_ties > 0, a.silent_below + b.silent_below - silent_ties / 2, 0)
    log_largest, log_smallest = (
        _log_share(n_a, n_b, silent_ties, outside)
        for outside in (n - silent_ties - negative, negative)
    )
    weight = 1 / (n + 1)
    both = (n_a > 0) & (n_b > 0)
    feature = groups.group // strata

    def summed(values: Float64) -> Float64:
        weights = np.where(both, values, 0.0)
        return np.bincount(feature, weights, minlength=n_features).astype(np.float64)

    every = sides.n.sum(axis=0) + 1
    every = sides.n[0] * sides.n[1] / every
    share = n_a * n_b / (n + 1) / every.sum()
    return Difference(
        np.bincount(feature, a.active, minlength=n_features).astype(np.float64),
        np.bincount(feature, b.active, minlength=n_features).astype(np.float64),
        0.5 + summed(share * (auroc - 0.5)),
        np.full(n_features, np.nan) if _unknown(sides) else summed(share**2 * variance_auroc),
        summed(weight * (u - n_a * n_b / 2)),
        summed(weight**2 * np.maximum(variance, 0)),
        summed(weight**3 * third),
        summed(log_largest),
        summed(log_smallest),
    )


def _log_share(n_a: Float64, n_b: Float64, silent: Float64, outside: Float64) -> Float64:
    """ln of the share of draws in which A has the units at one end, by group.

    outside: units beyond the silent ones there, which no draw but one puts in A if they are more.
    """
    ln = log_factorials(int((n_a + n_b).max()))

    def choose(n: Float64, k: Float64) -> Float64:
        n, k = n.astype(np.int64), k.astype(np.int64)
        possible = (k >= 0) & (k <= n)
        k = np.where(possible, k, 0)
        return np.where(possible, ln[n] - ln[k] - ln[n - k], 0.0)

    return choose(silent, n_a - outside) - choose(n_a + n_b, n_a)


def _unknown(sides: Sides) -> bool:
    """Whether the AUROC's variance is: a set of one unit has no spread."""
    return bool(sides.n.shape[1] == 1 and sides.n.min() < 2)


class _Groups(NamedTuple):
    """The pairs of units of A or B, by group, a feature in a stratum, and value ascending.

    group: feature · strata + stratum of those that have any, ascending [g]. edges: int64 [g + 1].
    of_a: bool [n]. value: float32 [n].
    """

    group: Int64
    edges: Int64
    of_a: npt.NDArray[np.bool_]
    value: Float32


def _groups(pairs: Pairs, sides: Sides) -> _Groups:
    side, value, edges = sides.side[pairs.unit], pairs.value, pairs.offsets
    strata = sides.n.shape[1]
    if strata > 1:
        place = np.flatnonzero(side)
        group = pairs.feature[place] * strata + sides.stratum[pairs.unit[place]]
        # Values ascend within a feature, which a stable order keeps.
        order = stable_order(group.astype(np.uint64), int(group.max(initial=0)).bit_length())
        group, place = group[order], place[order]
        side, value = side[place], value[place]
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        return _Groups(group[starts], np.append(starts, len(group)), side == 1, value)
    if not side.all():
        inside = side != 0
        edges = np.concatenate(([0], np.cumsum(inside)))[edges]
        side, value = side[inside], value[inside]
    present = np.flatnonzero(np.diff(edges))
    return _Groups(present, edges[np.append(present, len(edges) - 1)], side == 1, value)


class _Side(NamedTuple):
    """Units of one set: in each run of equal values of a group, and below it, ties half.

    size, below: float64 [r]. active: units in which the feature fires, float64 [g]. silent,
    silent_below: the same of the units in which it does not, as of a run, float64 [g]. Where it
    has a run of zeros they are in that, and silent is 0.
    """

    size: Float64
    below: Float64
    active: Float64
    silent: Float64
    silent_below: Float64


class _Runs(NamedTuple):
    """Runs of equal values. starts, sizes: of the runs of each group, int64 [g]."""

    starts: Int64
    sizes: Int64
    a: _Side
    b: _Side


def _runs(groups: _Groups, n_a: Float64, n_b: Float64) -> _Runs:
    """n_a, n_b: units of each group."""
    value, edges = groups.value, groups.edges
    last = np.empty(len(value), np.bool_)
    np.not_equal(value[1:], value[:-1], out=last[:-1])
    last[edges[1:] - 1] = True
    ends = np.flatnonzero(last)
    bounds = np.concatenate(([0], np.searchsorted(ends, edges[1:])))
    in_a = np.cumsum(groups.of_a, dtype=np.int64)[ends].astype(np.float64)
    sides = (
        _side(total, n, value[ends], bounds) for total, n in ((in_a, n_a), (ends + 1 - in_a, n_b))
    )
    return _Runs(bounds[:-1], np.diff(bounds), *sides)


def _side(total: Float64, n: Float64, value: Float32, bounds: Int64) -> _Side:
    """total: units up to the end of each run, of all groups. bounds: runs of each group."""
    starts, sizes = bounds[:-1], np.diff(bounds)
    before = np.concatenate(([0.0], total))[bounds]
    active = np.diff(before)
    silent = n - active
    size = np.diff(total, prepend=0.0)
    below = total - size / 2
    if (value > 0).all():  # as they are, but for sums, and for SAEs of negative activations
        below += np.repeat(silent - before[:-1], sizes)
        return _Side(size, below, active, silent, silent / 2)
    zero = value == 0
    everywhere = np.repeat(silent, sizes)
    below += np.where(value > 0, everywhere, zero * everywhere / 2) - np.repeat(before[:-1], sizes)
    negative = np.add.reduceat(np.where(value < 0, size, 0), starts)
    size = size + zero * everywhere
    silent = np.where(np.logical_or.reduceat(zero, starts), 0, silent)
    return _Side(size, below, active, silent, negative + silent / 2)
