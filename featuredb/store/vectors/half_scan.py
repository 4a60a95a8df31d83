"""FAISS over float16 rows where they lie: a memory-mapped matrix is scanned without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.store.vectors.directions import Float32Matrix, HalfMatrix

THREADS = 2
"""Threads of one question: two read memory about as fast as it can be read."""

_WORTH_A_THREAD = 4_096
"""Rows below which a piece is not divided among threads."""


class HalfScan:
    """Inner products with the rows of some matrices, counted through them in order."""

    def __init__(self, halves: Sequence[HalfMatrix], threads: int = THREADS) -> None:
        pieces = [piece for half in halves for piece in _divided(half, threads)]
        # A view does not own its rows; they must live as long as the index.
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
        """The k largest products with `query` [d], descending, and their rows; k at most [n]."""
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
    """The library, whose type hints leave out what is used here."""
    import faiss

    return faiss
