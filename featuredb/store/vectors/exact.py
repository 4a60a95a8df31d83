"""The nearest directions, exactly: candidates from a float16 scan, scored again in float64.

Scoring rule, the same when the neighbor graph is built and when a query runs: the float64
product of the float32 directions over the product of their float64 norms, rounded to seven
decimals, so that equal directions tie in any order of summation, and kept as float32.
Order: score descending, ties by row.

A float16 scan can only misplace a row by `SCAN_ERROR`, so if the k-th score is further than
that above the last product scanned, no row was missed. Otherwise more candidates are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.store.vectors.directions import Float32Matrix, HalfMatrix

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SCAN_ERROR = 2.0**-11 + 2.0**-15
"""Bound on a scanned product's error: float16 moves a unit row by at most 2⁻¹¹ of its length (its
subnormals and the float32 sums add far less than the second term)."""

_SLACK = 32
"""Candidates beyond the requested number."""

_WIDEN = 8
_WIDEST = 4_096
"""If the candidates do not suffice, eight times as many are taken. Beyond this, all."""

_DECIMALS = 7

THREADS = 2
"""Threads of one question: two read memory about as fast as it can be read."""

_WORTH_A_THREAD = 4_096
"""Rows below which a piece is not divided among threads."""

_REACH = 2 * SCAN_ERROR + 10.0**-_DECIMALS
"""How far below the k-th product of a scan a row of the k highest scores may have been scanned:
either of two rows may be misplaced, and rounding makes nearly equal scores tie."""


class Found(NamedTuple):
    """Rows int64 and their scores float32, in order."""

    rows: Int64
    scores: npt.NDArray[np.float32]


class ExactSearch:
    """Search over the directions of SAEs that may be compared.

    halves: unit rows float16 [d_sae, d] of each. take: gives rows float32, not normalized, counted
    through the SAEs in the same order. threads: per question, at most.
    """

    def __init__(
        self,
        halves: Sequence[HalfMatrix],
        take: Callable[[Int64], Float32Matrix],
        threads: int = THREADS,
    ) -> None:
        self._n = sum(map(len, halves))
        self._scan = HalfScan(halves, threads)
        self._take = take

    def search(self, query: npt.NDArray[np.floating], k: int) -> Found:
        """The min(k, n) rows of highest cosine to `query` [d], of any length but infinite."""
        k = min(k, self._n)
        unit = unit_vector(query).astype(np.float32)
        wanted = k + _SLACK
        while unit.any() and wanted < self._n and wanted <= max(_WIDEST, k + _SLACK):
            scanned, rows = self._scan.top(unit, wanted)
            # No row further down can be among the k. Reading one costs more than skipping it.
            near = scanned >= scanned[k - 1] - _REACH
            nearest = scored(query, rows[near], self._take, k)
            if nearest.scores[-1] > scanned[-1] + SCAN_ERROR:
                return nearest
            wanted *= _WIDEN
        if not unit.any():
            return Found(np.arange(k), np.zeros(k, np.float32))
        return scored(query, np.arange(self._n), self._take, k)


def scored(
    query: npt.NDArray[np.floating], rows: Int64, take: Callable[[Int64], Float32Matrix], k: int
) -> Found:
    """The k best of `rows` by the scoring rule, in order."""
    blocks = [rows[i : i + _WIDEST] for i in range(0, len(rows), _WIDEST)]
    scores = np.concatenate([cosines(query, take(block)) for block in blocks])
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order])


def cosines(
    left: npt.NDArray[np.floating],
    right: npt.NDArray[np.floating],
    norms: tuple[Float64, Float64] | None = None,
) -> npt.NDArray[np.float32]:
    """Scores of pairs of rows: [n, d] with [n, d], or [d] with [n, d]. Zero rows score 0.

    norms: their float64 norms, where they are known already.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    left_norms, right_norms = norms if norms is not None else (row_norms(left), row_norms(right))
    lengths = left_norms * right_norms
    products = np.einsum("...d,...d->...", left, right)
    cosine = products / np.where(lengths == 0, 1.0, lengths)
    rounded: npt.NDArray[np.float32] = np.round(cosine, _DECIMALS).astype(np.float32)
    return rounded


def row_norms(rows: npt.NDArray[np.floating]) -> Float64:
    """Euclidean norms, float64."""
    wide = rows.astype(np.float64)
    return np.asarray(np.sqrt(np.einsum("...d,...d->...", wide, wide)))


def unit_vector(vector: npt.NDArray[np.floating]) -> Float64:
    """`vector` over its norm. A zero vector stays zero."""
    norm = float(row_norms(vector))
    return vector.astype(np.float64) / (norm or 1.0)


class HalfScan:
    """Inner products with the rows of some matrices, counted through them in order."""

    def __init__(self, halves: Sequence[HalfMatrix], threads: int = THREADS) -> None:
        pieces = [piece for half in halves for piece in _divided(half, threads)]
        # A view does not own its rows. They must live as long as the index.
        self._rows = [np.ascontiguousarray(piece) for piece in pieces]
        self._views = [_view(piece) for piece in self._rows]
        self._index = self._views[0]
        if len(self._views) > 1:
            self._index = _faiss().IndexShards(self._rows[0].shape[1], True, True)
            for view in self._views:
                self._index.add_shard(view)

    def top(
        self, query: npt.NDArray[np.float32], k: int
    ) -> tuple[Float32Matrix, npt.NDArray[np.int64]]:
        """The k largest products with `query` [d], descending, and their rows. k: at most [n]."""
        scores, rows = self._index.search(query[None, :], k)
        return scores[0], rows[0]


def _divided(half: HalfMatrix, threads: int) -> Sequence[HalfMatrix]:
    return np.array_split(half, threads) if len(half) >= _WORTH_A_THREAD * threads else [half]


def _view(half: HalfMatrix) -> Any:
    """An index whose codes are the rows themselves: QT_fp16 stores a row as just its float16s."""
    faiss = _faiss()
    index = faiss.IndexScalarQuantizer(
        half.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    nobody = faiss.MaybeOwnedVectorUInt8()
    index.codes = faiss.MaybeOwnedVectorUInt8.create_view(
        faiss.swig_ptr(half.reshape(-1).view(np.uint8)), half.nbytes, nobody.owner
    )
    index.ntotal = len(half)
    return index


def _faiss() -> Any:
    """The library. Its type hints lack what is used here."""
    import faiss

    return faiss
