"""An inverted file misses only rows in lists it does not probe."""

from __future__ import annotations

import numpy as np
import pytest

from featuredb.store.vectors.directions import Float32Matrix, half_rows
from featuredb.store.vectors.exact import ExactSearch
from featuredb.store.vectors.ivf import InvertedLists


def both(rows: Float32Matrix) -> tuple[ExactSearch, InvertedLists]:
    """Exact search, and an inverted file of one list."""
    n = len(rows)
    halves = [half_rows(part) for part in np.split(rows, [n // 3])]
    lists = np.concatenate([[0, n], np.arange(n)])
    centroids = np.ones((1, rows.shape[1]), np.float32)
    return ExactSearch(halves, rows.__getitem__), InvertedLists(
        centroids, lists, halves, rows.__getitem__, 1
    )


@pytest.mark.parametrize("spread", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("k", [1, 10, 60, 2**63 - 1])
def test_rows_closer_together_than_float16_can_tell(spread: float, k: int) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=64) + spread * rng.normal(size=(4_000, 64))).astype(np.float32)
    exact, inverted = both(rows)
    for query in rows[:10]:
        want, got = exact.search(query, k), inverted.search(query, k)
        assert np.array_equal(want.rows, got.rows)
        assert np.array_equal(want.scores, got.scores)
