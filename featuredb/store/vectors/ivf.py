"""Approximate search in an inverted file: only the lists with the nearest centroids are scanned.

The file holds no directions, only which rows each list has: the rows themselves are read from the
float16 matrices, and are searched as in `featuredb.store.vectors.exact`. So scores are exact, and
only a row in a list that was not scanned can be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from featuredb.store.vectors.directions import Float32Matrix, HalfMatrix
from featuredb.store.vectors.exact import ExactSearch, Found, Int64, unit_vector


class InvertedLists:
    """Search over the directions of SAEs that may be compared.

    centroids: float32 [m, d], unit. lists: int64 [m + 1 + n], where each list begins, then the
    rows of all lists. halves, take: as for `featuredb.store.vectors.exact.ExactSearch`. probes:
    lists scanned per question.
    """

    def __init__(
        self,
        centroids: Float32Matrix,
        lists: Int64,
        halves: Sequence[HalfMatrix],
        take: Callable[[Int64], Float32Matrix],
        probes: int,
    ) -> None:
        self._centroids = centroids
        self._begins = np.asarray(lists[: len(centroids) + 1])
        self._rows = lists[len(centroids) + 1 :]
        self._halves = halves
        self._take = take
        self.probes = probes

    def search(self, query: npt.NDArray[np.floating], k: int) -> Found:
        """The min(k, n) rows of highest cosine to `query` [d] in the lists nearest to it.

        More lists than `probes` are scanned where those do not hold k rows.
        """
        rows = self._candidates(unit_vector(query).astype(np.float32), k)
        scanned = ExactSearch([gathered(self._halves, rows)], lambda i: self._take(rows[i]), 1)
        nearest = scanned.search(query, k)
        return Found(rows[nearest.rows], nearest.scores)

    def _candidates(self, unit: npt.NDArray[np.float32], k: int) -> Int64:
        """The rows of the nearest lists, ascending."""
        nearest = np.argsort(-(self._centroids @ unit), kind="stable")
        held = np.cumsum(self._begins[nearest + 1] - self._begins[nearest])
        enough = int(np.searchsorted(held, min(k, held[-1]))) + 1
        probed = nearest[: max(self.probes, enough)]
        rows = np.concatenate([self._rows[self._begins[i] : self._begins[i + 1]] for i in probed])
        rows.sort()
        return rows


def gathered(halves: Sequence[HalfMatrix], rows: Int64) -> HalfMatrix:
    """Rows by number, ascending, counted through the matrices."""
    firsts = np.cumsum([0] + [len(half) for half in halves])
    edges = np.searchsorted(rows, firsts)
    return np.concatenate(
        [
            half[rows[low:high] - first]
            for half, first, low, high in zip(
                halves, firsts[:-1], edges[:-1], edges[1:], strict=True
            )
        ]
    )
