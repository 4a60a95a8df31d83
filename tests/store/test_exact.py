"""Exact search equals comparing with every row, to the last bit and tie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from featuredb.store.vectors.directions import half_rows
from featuredb.store.vectors.exact import ExactSearch, HalfScan, cosines
from tests.directions import clustered, cosines_of_all, with_ties


def search(rows: npt.NDArray[np.float32], cuts: list[int]) -> ExactSearch:
    return ExactSearch([half_rows(part) for part in np.split(rows, cuts)], rows.__getitem__)


@pytest.mark.parametrize(
    ("n", "cuts"), [(10_000, []), (10_000, [9_000, 9_005]), (40, [39]), (1, [])]
)
def test_every_row_s_nearest(n: int, cuts: list[int]) -> None:
    rows = clustered(n, 24)
    if n > 1_000:
        rows = with_ties(rows)
    exact = search(rows, cuts)
    for query in sorted({q for q in (0, 3, 10, 100, n - 1) if q < n}):
        [everything] = cosines_of_all(rows, [query])
        order = np.lexsort((np.arange(n), -everything))
        for k in (1, 20, 200, n, n + 5):
            found = exact.search(rows[query], k)
            assert np.array_equal(found.rows, order[:k])
            assert np.array_equal(found.scores, everything[order[:k]])


def test_ties_beyond_what_is_looked_at_go_by_row() -> None:
    """Six thousand rows of one direction: the scan cannot decide which come first."""
    rows = np.tile(clustered(1, 8), (6_000, 1))
    rows *= np.random.default_rng(0).uniform(0.5, 2, (6_000, 1)).astype(np.float32)
    found = search(rows, [3_000]).search(rows[5], 30)
    assert found.rows.tolist() == list(range(30))


def test_float16_alone_would_put_them_in_another_order() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal(64)
    rows = (one + 1e-4 * rng.standard_normal((9_000, 64))).astype(np.float32)
    [everything] = cosines_of_all(rows, [7])
    half = half_rows(rows)
    order = np.lexsort((np.arange(9_000), -everything))[:20]
    by_half = np.argsort(-(half.astype(np.float64) @ half[7].astype(np.float64)), kind="stable")
    assert by_half[:20].tolist() != order.tolist()
    assert search(rows, []).search(rows[7], 20).rows.tolist() == order.tolist()


def test_the_scan_reads_the_rows_where_they_lie() -> None:
    half = half_rows(clustered(9_000, 16))
    scan = HalfScan([half[:50], half[50:]])
    query = clustered(1, 16, seed=1)[0]
    before = scan.top(query, 1)[1][0]
    half[before] = 0
    assert scan.top(query, 1)[1][0] != before


def test_scores_do_not_depend_on_company_or_side() -> None:
    rows = clustered(300, 100)
    together = cosines(rows[:100], rows[100:200])
    alone = [cosines(rows[i], rows[100 + i : 101 + i])[0] for i in range(100)]
    turned = cosines(rows[100:200], rows[:100])
    assert together.tolist() == alone == turned.tolist()
    assert cosines(np.zeros(100), rows[:2]).tolist() == [0.0, 0.0]
