"""The statistics of a contrast against dense ones: scipy, and the definitions written out."""

from __future__ import annotations

import math
from itertools import combinations, permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from queries.contrasts.paired import UnitPairs, signed_rank
from queries.contrasts.trend import STRONGEST, midranks, trend
from queries.contrasts.two_sets import Sides, difference
from queries.pooled import Pairs, pairs_of
from queries.tails import normal_deviate, two_sided, two_sided_t

Dense = npt.NDArray[np.float32]
quick = settings(max_examples=60, deadline=None)


def active_in(dense: Dense) -> Pairs:
    """dense: [features, units]."""
    feature, unit = np.nonzero(dense)
    return pairs_of(range(len(dense)), feature, unit.astype(np.int32), dense[feature, unit])


def drawn(rng: np.random.Generator, below: int, n: int) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = rng.integers(0, below, n)
    return values


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Dense, np.random.Generator]:
    """Few values, so that many tie; features that never fire, and those of negative values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 6)), draw(st.integers(2, 40))
    levels = draw(st.sampled_from([[1.0], [0.5, 1.0, 2.0], [-1.0, -0.25, 0.5, 7e4]]))
    dense = rng.choice(np.array(levels, np.float32), shape)
    if draw(st.booleans()):
        dense = rng.normal(size=shape).astype(np.float32)
    dense[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = 0
    return dense, rng


@given(matrices())
@quick
def test_two_sets(made: tuple[Dense, np.random.Generator]) -> None:
    dense, rng = made
    side = drawn(rng, 3, dense.shape[1]).astype(np.uint8)
    side[:2] = 1, 2
    sides = Sides.of(side)
    found = difference(active_in(dense), sides)
    low, high = found.interval()
    p = found.p(sides)
    for f, row in enumerate(dense.astype(np.float64)):
        a, b = row[side == 1], row[side == 2]
        assert found.active_a[f] == np.count_nonzero(a)
        assert found.active_b[f] == np.count_nonzero(b)
        wins = (a[:, None] > b) + (a[:, None] == b) / 2
        assert found.auroc[f] == pytest.approx(wins.mean(), abs=1e-12)
        if len(a) > 1 and len(b) > 1:
            variance = wins.mean(axis=1).var(ddof=1) / len(a) + wins.mean(axis=0).var(ddof=1) / len(
                b
            )
            half = 1.959963984540054 * math.sqrt(variance)
            assert low[f] == pytest.approx(max(0, wins.mean() - half), abs=1e-9)
            assert high[f] == pytest.approx(min(1, wins.mean() + half), abs=1e-9)
        else:
            assert np.isnan(low[f])
            assert np.isnan(high[f])
        if np.ptp([*a, *b]) == 0:
            assert p[f] == 1
        else:
            theirs = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
            assert p[f] == pytest.approx(theirs, rel=1e-9)
        every = np.array([*a, *b])
        ranks = stats.rankdata(every) - (len(every) + 1) / 2
        m, n, size = len(a), len(b), len(every)
        third = m * n * (n - m) / (size * (size - 1) * (size - 2)) if size > 2 else 0
        third *= (ranks**3).sum() / (size + 1) ** 3
        assert found.third[f] == pytest.approx(third, abs=1e-9)


@given(st.integers(2, 7), st.integers(0, 2**32 - 1))
@quick
def test_no_p_is_smaller_than_that_of_the_most_extreme_draw(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = (rng.integers(1, 50, (6, n)) * rng.integers(-1, 3, (6, n))).astype(np.float32)
    n_a = int(rng.integers(1, n))
    side = rng.permutation(np.repeat([1, 2], [n_a, n - n_a])).astype(np.uint8)
    found = difference(active_in(dense), Sides.of(side))
    for f, row in enumerate(dense.astype(np.float64)):
        ranks = stats.rankdata(row)
        sums = np.array([sum(ranks[list(a)]) for a in combinations(range(n), n_a)])
        for log_share, extreme in (
            (found.log_largest[f], sums.max()),
            (found.log_smallest[f], sums.min()),
        ):
            share = np.mean(np.abs(sums - extreme) < 1e-9)
            assert np.exp(log_share) <= share + 1e-9
            if len(set(row[row != 0])) == np.count_nonzero(row):
                assert np.exp(log_share) == pytest.approx(share)


@given(st.integers(3, 6), st.integers(0, 2**32 - 1))
@quick
def test_moments_of_a_correlation_over_all_permutations(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = (rng.integers(1, 50, (6, n)) * rng.integers(-1, 3, (6, n))).astype(np.float32)
    target = rng.integers(0, 3, n).astype(np.float64)
    if np.ptp(target) == 0:
        return
    ranks = midranks(target)
    found = trend(active_in(dense), target, ranks)
    orders = np.array(list(permutations(ranks)))
    for f, row in enumerate(dense.astype(np.float64)):
        if np.ptp(row) == 0:
            continue
        sums = orders @ (stats.rankdata(row) - (n + 1) / 2)
        assert found.skew[f] == pytest.approx(stats.skew(sums), abs=1e-9)
        extreme = sums.max() if found.spearman[f] > 0 else sums.min()
        share = np.mean(np.abs(sums - extreme) < 1e-9)
        assert found.least_p[f] <= min(1, 2 * share) + 1e-9
        if len(set(row[row != 0])) == np.count_nonzero(row):
            assert found.least_p[f] == pytest.approx(min(1, 2 * share))


@given(matrices())
@quick
def test_strata_are_two_sets_each(made: tuple[Dense, np.random.Generator]) -> None:
    """The statistics of strata by themselves, added with van Elteren's weights."""
    dense, rng = made
    n_units = dense.shape[1]
    side = drawn(rng, 3, n_units).astype(np.uint8)
    side[:2] = 1, 2
    stratum = drawn(rng, 3, n_units).astype(np.int32)
    stratum[1] = stratum[0]
    sides = Sides.of(side, stratum)
    found = difference(active_in(dense), sides)
    excess, variance, weights, aurocs = (np.zeros(len(dense)) for _ in range(4))
    for s in range(3):
        own = Sides.of(np.where(stratum == s, side, 0).astype(np.uint8))
        n_a, n_b = own.n[:, 0]
        if n_a and n_b:
            one = difference(active_in(dense), own)
            excess += one.excess
            variance += one.variance
            weight = n_a * n_b / (n_a + n_b + 1)
            weights += weight
            aurocs += weight * one.auroc
    assert found.excess == pytest.approx(excess, abs=1e-12)
    assert found.variance == pytest.approx(variance, abs=1e-12)
    assert found.auroc == pytest.approx(aurocs / weights, abs=1e-12)


@given(matrices())
@quick
def test_pairs(made: tuple[Dense, np.random.Generator]) -> None:
    dense, rng = made
    n_pairs = dense.shape[1] // 2
    order = rng.permutation(dense.shape[1])
    pair = np.full(dense.shape[1], -1, np.int64)
    sign = np.zeros(dense.shape[1], np.int8)
    one, two = order[:n_pairs], order[n_pairs : 2 * n_pairs]
    pair[one], pair[two] = np.arange(n_pairs), np.arange(n_pairs)
    sign[one], sign[two] = 1, -1
    z, least = signed_rank(active_in(dense), UnitPairs(pair, sign))
    for f, row in enumerate(dense.astype(np.float64)):
        d = row[one] - row[two]
        if not d.any():
            assert z[f] == 0
            continue
        theirs = stats.wilcoxon(d, method="asymptotic", correction=False)
        assert two_sided(z)[f] == pytest.approx(theirs.pvalue, rel=1e-9)
        d = d[d != 0]
        assert least[f] == pytest.approx(min(1, 2 * 0.5 ** len(d)))
        excess = (np.sign(d) * stats.rankdata(abs(d))).sum()
        assert np.sign(z[f]) == np.sign(round(excess, 6))


@pytest.mark.filterwarnings("ignore:.*constant:scipy.stats.ConstantInputWarning")
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@given(matrices())
@quick
def test_a_target(made: tuple[Dense, np.random.Generator]) -> None:
    dense, rng = made
    target = drawn(rng, 6, dense.shape[1]).astype(np.float64)
    target[rng.random(len(target)) < 0.2] = np.nan
    known = ~np.isnan(target)
    if known.sum() < 3 or np.ptp(target[known]) == 0:
        return
    ranks = np.zeros(len(target))
    ranks[known] = midranks(target[known])
    found = trend(active_in(dense), target, ranks)
    for f, row in enumerate(dense[:, known].astype(np.float64)):
        y = target[known]
        same(found.spearman[f], stats.spearmanr(row, y).statistic)
        active = row != 0
        assert found.active[f] == active.sum()
        if active.any() and not active.all():
            theirs = stats.ttest_ind(y[active], y[~active]).statistic
            if np.isfinite(theirs) and abs(theirs) < 1e6:
                same(found.t[f], theirs)
            top = np.sort(row[active])[::-1][:STRONGEST]
            if len(top) == active.sum():
                same(found.separation[f], y[active].mean() - y[~active].mean())


def same(one: Any, other: Any) -> None:
    assert (np.isnan(one) and np.isnan(other)) or one == pytest.approx(other, abs=1e-9)


def test_tails() -> None:
    z = np.array([0, 0.3, 1.96, 5, 12, 37.0])
    assert two_sided(z) == pytest.approx(2 * stats.norm.sf(z), rel=1e-12)
    assert normal_deviate(two_sided(z[:-1])) == pytest.approx(z[:-1], abs=1e-6)
    for df in (1.0, 2.0, 5.0, 30.0, 998.0, 99_998.0):
        t = np.array([0, 1e-9, 0.1, 1, 2.5, 8, 40])
        theirs = 2 * stats.t.sf(t, df)
        assert two_sided_t(t, np.full(len(t), df)) == pytest.approx(theirs, rel=1e-9)
    assert two_sided_t(np.array([np.inf, -3.0]), np.array([4.0, 9.0]))[0] == 0


def test_a_small_set_and_a_rare_feature_are_no_evidence() -> None:
    """The corrected p against how often chance does it, where the normal tail is far off."""
    rng = np.random.default_rng(0)
    n, small, active = 3_000, 50, 6
    dense = np.zeros((1, n), np.float32)
    dense[0, :active] = rng.random(active) + 1
    for in_small in (2, 3):
        side = np.full(n, 2, np.uint8)
        side[:in_small] = 1
        side[active : active + small - in_small] = 1
        sides = Sides.of(side)
        found = difference(active_in(dense), sides)
        chance = stats.hypergeom.sf(in_small - 1, n, active, small)
        corrected = float(two_sided(found.corrected(sides))[0])
        assert float(found.p(sides)[0]) < chance / 100
        assert chance / 2 <= corrected <= 10 * chance
