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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from queries.pooled import Float32, Int32, Int64, Pairs
from queries.tails import Z95, two_sided

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
    has one unit), and the statistic: its value less the expected one, variance, third moment."""

    active_a: Float64
    active_b: Float64
    auroc: Float64
    auroc_variance: Float64
    excess: Float64
    variance: Float64
    third: Float64

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
        with np.errstate(divide="ignore", invalid="ignore"):
            u = 6 / skew * (np.cbrt(np.maximum(skew * z / 2 + 1, 0)) - 1) + skew / 6
        u = np.where(np.abs(skew) < 1e-6, z, u)
        # The tail that z is in. Where the correction has it on the other side it is no evidence.
        u = np.where(np.sign(u) == np.sign(z), u, 0)
        return np.where(np.abs(u) < np.abs(z), u, z)

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
    side = sides.side[pairs.unit]
    inside = np.flatnonzero(side)
    side, unit = side[inside], pairs.unit[inside]
    group = pairs.feature[inside]
    of_a = side == 1
    active = [np.bincount(group[which], minlength=n_features) for which in (of_a, ~of_a)]
    if strata > 1:
        group = group * strata + sides.stratum[unit]
    runs = _runs(group, pairs.value[inside], of_a, sides.n, n_features * strata)
    n_a, n_b = runs.n
    n = n_a + n_b
    a, b, starts = runs.a, runs.b, runs.starts
    sizes = np.diff(starts, append=len(a))
    below_a = np.cumsum(a) - a - np.repeat(np.cumsum(n_a) - n_a, sizes)
    below_b = np.cumsum(b) - b - np.repeat(np.cumsum(n_b) - n_b, sizes)
    size_a, size_b = np.repeat(n_a, sizes), np.repeat(n_b, sizes)

    def total(values: Float64) -> Float64:
        return np.add.reduceat(values, starts) if len(starts) else np.empty(0)

    ties = a + b
    wins_a = below_b + b / 2
    u = total(a * wins_a)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = u / (n_a * n_b)
        wins_b = size_a - below_a - a / 2
        spread_a = total(a * (wins_a / size_b) ** 2) - n_a * auroc**2
        spread_b = total(b * (wins_b / size_a) ** 2) - n_b * auroc**2
        variance_auroc = np.maximum(spread_a / (n_a - 1), 0) / n_a
        variance_auroc += np.maximum(spread_b / (n_b - 1), 0) / n_b
        variance = n_a * n_b / 12 * (n + 1 - total(ties**3 - ties) / (n * (n - 1)))
        midrank = below_a + below_b + (ties + 1) / 2 - np.repeat((n + 1) / 2, sizes)
        third = n_a * n_b * (n_b - n_a) / (n * (n - 1) * (n - 2)) * total(ties * midrank**3)
        # A set of one unit in a stratum says nothing of its spread: that of the null stands for it.
        alone = (n_a < 2) | (n_b < 2)
        variance_auroc[alone] = (variance / (n_a * n_b) ** 2)[alone]
    third[n < 3] = 0
    weight = 1 / (n + 1)
    both = (n_a > 0) & (n_b > 0)
    feature = runs.group // strata

    def summed(values: Float64) -> Float64:
        weights = np.where(both, values, 0.0)
        return np.bincount(feature, weights, minlength=n_features).astype(np.float64)

    every = sides.n.sum(axis=0) + 1
    every = sides.n[0] * sides.n[1] / every
    share = n_a * n_b / (n + 1) / every.sum()
    unknown = strata == 1 and sides.n.min() < 2
    return Difference(
        active[0].astype(np.float64),
        active[1].astype(np.float64),
        0.5 + summed(share * (auroc - 0.5)),
        np.full(n_features, np.nan) if unknown else summed(share**2 * variance_auroc),
        summed(weight * (u - n_a * n_b / 2)),
        summed(weight**2 * np.maximum(variance, 0)),
        summed(weight**3 * third),
    )


class _Runs(NamedTuple):
    """Runs of equal values, by group and value: how many of A and B, float64 [r]. starts [g]: where
    each group begins. group: which it is, [g]. n: units of A and B in each, float64 [2, g]."""

    a: Float64
    b: Float64
    starts: Int64
    group: Int64
    n: Float64


def _runs(
    group: Int64, value: Float32, of_a: npt.NDArray[np.bool_], n: Float64, groups: int
) -> _Runs:
    """Sort values within groups, of which every fourth or so ties with others.

    Group, value and set are one integer: sorting that is several times faster than sorting rows.
    n: units in each stratum, which is the group modulo their number.
    """
    present = np.flatnonzero(np.bincount(group, minlength=groups))
    keys = np.empty(len(group) + len(present), np.uint64)
    keys[: len(group)] = group.astype(np.uint64) << np.uint64(33) | ordered(value) << np.uint64(1)
    keys[: len(group)] |= of_a
    # One entry that stands for all units in which the feature does not fire.
    zero = ordered(np.zeros(1, np.float32)) << np.uint64(1)
    keys[len(group) :] = present.astype(np.uint64) << np.uint64(33) | zero
    keys.sort()
    place = keys >> np.uint64(1)
    new = np.concatenate(([True], place[1:] != place[:-1]))[: len(place)]
    first = np.flatnonzero(new)
    if len(first) == 0:
        empty = np.empty(0)
        return _Runs(empty, empty, first, first, np.empty((2, 0)))
    a = np.add.reduceat((keys & np.uint64(1)).astype(np.float64), first)
    b = np.diff(first, append=len(keys)) - a
    place = place[first]
    starts = np.flatnonzero(np.diff((place >> np.uint64(32)).astype(np.int64), prepend=-1))
    silent = np.flatnonzero((place & np.uint64(0xFFFFFFFF)) == zero >> np.uint64(1))
    sizes = n[:, present % n.shape[1]]
    b[silent] -= 1
    for counts, size in zip((a, b), sizes, strict=True):
        counts[silent] += size - np.add.reduceat(counts, starts)
    return _Runs(a, b, starts, present, sizes)


def ordered(value: Float32) -> npt.NDArray[np.uint64]:
    """Integers below 2**32 in the order of the values, equal where they are."""
    bits = (value + np.float32(0)).view(np.int32)
    bits = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (bits.astype(np.int64) + (1 << 31)).astype(np.uint64)
