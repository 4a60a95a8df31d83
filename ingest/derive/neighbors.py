"""The stored neighbor graph: per feature the nearest directions among SAEs that share a hook.

FAISS multiplies all pairs in float32, a block of queries by a block of rows at a time. The best are
scored by the rule of `featuredb.store.vectors.exact`, so that the graph and a search agree. The
error of a float32 product is bounded. Where it could hide a neighbor, more pairs are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.snapshot import Sae
from featuredb.store.vectors.directions import Float32Matrix, RowSlices
from featuredb.store.vectors.exact import Float64, Int64, cosines, row_norms

MEMORY = 1 << 30
"""Default working memory in bytes."""

_ERROR = 2.0**-24
"""Bound, per number in a direction, on the error of a float32 product of two unit rows."""

_SLACK = 13
_WIDEN = 8
_WIDEST = 4_096
"""Candidates beyond the stored neighbors. If they do not suffice, eight times as many are scored,
and beyond `_WIDEST` all."""

_PAIRS = 512
"""Pairs scored at once, so that they stay in a core's cache."""

_ALIGNED = 100
"""Queries per block are a multiple of this, so that tables end at row group boundaries."""

_MOST_QUERIES = 16_300
_MOST_SCALED = 16_384
_READ = 16_384
"""Rows of memory left to LanceDB, which holds four copies of the 4,096 it reads at a time."""

_FEWEST_ROWS = 1_000

_PRODUCTS = 2 * 4_096 * 1_024 * 4
"""Bytes of the block of products that FAISS holds, and as much for its library of matrices."""


class _Sizes(NamedTuple):
    """Queries and rows that are in memory together, and rows that are normalized together."""

    queries: int
    rows: int
    scaled: int

    @classmethod
    def within(cls, memory: int, width: int) -> _Sizes:
        """Split the memory left after FAISS's products and the pairs equally between the two."""
        scaled = max(_FEWEST_ROWS, min(_MOST_SCALED, memory // (32 * 4 * width)))
        fixed = _PRODUCTS + (_PAIRS * 8 + scaled + _READ) * 4 * width
        half = max(0, memory - fixed) // 2
        # A query is held raw and normalized, with its candidates and its part of the table.
        query = 8 * width + (schemas.NEIGHBORS_KEPT + 1 + _SLACK) * 96 + schemas.NEIGHBORS_KEPT * 96
        queries = min(_MOST_QUERIES, half // query) // _ALIGNED * _ALIGNED
        return cls(max(_ALIGNED, queries), max(_FEWEST_ROWS, half // (4 * width)), scaled)


def neighbors(
    saes: Sequence[Sae], rows: Mapping[str, RowSlices], *, memory: int = MEMORY
) -> pa.Table:
    """Rows of NEIGHBORS for all features: `iter_neighbors` in one table."""
    tables = list(iter_neighbors(saes, rows, memory=memory))
    return pa.concat_tables(tables) if tables else schemas.NEIGHBORS.empty_table()


def iter_neighbors(
    saes: Sequence[Sae], rows: Mapping[str, RowSlices], *, memory: int = MEMORY
) -> Iterator[pa.Table]:
    """Rows of NEIGHBORS for all features, in order, some thousand features at a time.

    rows: directions float32 [d_sae, d] by SAE name, arrays or what reads a slice when asked. SAEs
    are comparable when they read the same hook, write the same hook and their directions have the
    same length. A feature is not a neighbor of itself. Exact, by the scoring rule of
    `featuredb.store.vectors.exact`. memory: bytes to work in, besides `rows`. Less means more
    passes over the rows. Less than some tens of megabytes is not honored.
    """
    group: _Group | None = None
    for sae in saes:
        space = (sae.places, rows[sae.name].shape[1])
        names = [s.name for s in saes if (s.places, rows[s.name].shape[1]) == space]
        if group is None or group.names != names:
            group = None  # free the previous one before the next is built
            group = _Group(names, [rows[name] for name in names], memory)
        yield from group.tables(sae.name)


class _Candidates(NamedTuple):
    """Per query rows int64 [q, c] and their products float32, descending."""

    rows: Int64
    products: Float32Matrix


class _Group:
    """The rows of comparable SAEs, one SAE after another."""

    def __init__(self, names: list[str], rows: Sequence[RowSlices], memory: int) -> None:
        self.names = names
        self._rows = rows
        self._firsts = np.cumsum([0] + [r.shape[0] for r in rows])
        self._n = int(self._firsts[-1])
        self._kept = min(schemas.NEIGHBORS_KEPT + 1, self._n)
        width = rows[0].shape[1]
        self._error = (width + 16) * _ERROR
        self._sizes = _Sizes.within(memory, width)
        if self._n <= self._sizes.rows:
            # All at once: an array is not copied, and files are read once.
            self._rows = [r[: r.shape[0]] for r in rows]
        self._norms = np.concatenate(
            [row_norms(part) for _, block in self._blocks() for part in _parts(block, _PAIRS)]
        )

    def tables(self, sae: str) -> Iterator[pa.Table]:
        """Neighbors of one SAE's features, in order."""
        number = self.names.index(sae)
        first, end = self._firsts[number : number + 2].tolist()
        for start in range(first, end, self._sizes.queries):
            ids = np.arange(start, min(end, start + self._sizes.queries))
            queries = self._rows[number][start - first : int(ids[-1]) + 1 - first]
            rows, scores = self._nearest(queries, self._norms[ids], self._kept + _SLACK)
            yield self._table(number, ids, rows, scores)

    def _nearest(
        self, queries: Float32Matrix, norms: Float64, wanted: int
    ) -> tuple[Int64, Float32Matrix]:
        """The rows of highest score to each query, and the scores, [q, kept], in order."""
        wanted = self._n if wanted > _WIDEST else min(wanted, self._n)
        best = self._candidates(_scaled(queries, norms), wanted)
        scores = self._scores(queries, norms, best.rows)
        order = np.lexsort((best.rows, -scores), axis=1)[:, : self._kept]
        nearest = np.take_along_axis(best.rows, order, axis=1)
        sorted_scores = np.take_along_axis(scores, order, axis=1)
        # Every score of a zero query is 0, so its neighbors are the first rows.
        nearest[norms == 0] = np.arange(self._kept)
        if wanted < self._n:
            settled = sorted_scores[:, -1] > best.products[:, -1] + self._error
            doubtful = np.flatnonzero(~settled & (norms > 0))
            step = max(1, self._sizes.queries * (self._kept + _SLACK) // (wanted * _WIDEN))
            for start in range(0, len(doubtful), step):
                some = doubtful[start : start + step]
                nearest[some], sorted_scores[some] = self._nearest(
                    queries[some], norms[some], wanted * _WIDEN
                )
        return nearest, sorted_scores

    def _candidates(self, unit: Float32Matrix, wanted: int) -> _Candidates:
        """The `wanted` rows of largest float32 product with each unit query."""
        import faiss

        if wanted == self._n:
            rows = np.broadcast_to(np.arange(self._n), (len(unit), self._n))
            return _Candidates(rows, np.empty((len(unit), 0), np.float32))
        best = faiss.ResultHeap(len(unit), wanted, keep_max=True)
        for start, block in self._blocks():
            for part in _parts(block, self._sizes.scaled):
                norms = self._norms[start : start + len(part)]
                products, rows = faiss.knn(
                    unit, _scaled(part, norms), min(wanted, len(part)), faiss.METRIC_INNER_PRODUCT
                )
                rows += start
                best.add_result(products, rows)
                start += len(part)
        best.finalize()
        return _Candidates(best.I, best.D)

    def _scores(self, queries: Float32Matrix, norms: Float64, rows: Int64) -> Float32Matrix:
        """The scores of the candidates `rows` [q, c] of each query."""
        scores = np.empty(rows.shape, np.float32)
        for start, block in self._blocks():
            query, column = np.nonzero((rows >= start) & (rows < start + len(block)))
            for low in range(0, len(query), _PAIRS):
                at = query[low : low + _PAIRS], column[low : low + _PAIRS]
                row = rows[at]
                scores[at] = cosines(
                    queries[at[0]], block[row - start], (norms[at[0]], self._norms[row])
                )
        return scores

    def _blocks(self) -> Iterator[tuple[int, Float32Matrix]]:
        """Blocks of rows that fit in memory, each with the number of its first row."""
        size = self._sizes.rows
        for first, rows in zip(self._firsts[:-1].tolist(), self._rows, strict=True):
            for start in range(0, rows.shape[0], size):
                yield first + start, rows[start : start + size]

    def _table(self, number: int, ids: Int64, rows: Int64, scores: Float32Matrix) -> pa.Table:
        other = rows != ids[:, None]
        rank = np.cumsum(other, axis=1, dtype=np.int32)
        valid = other & (rank <= schemas.NEIGHBORS_KEPT)
        neighbor = rows[valid]
        owner = np.searchsorted(self._firsts, neighbor, side="right") - 1
        names = pa.array(self.names, pa.string())
        return pa.table(
            [
                pa.repeat(names[number], len(neighbor)),
                pa.array(np.repeat(ids - self._firsts[number], valid.sum(axis=1))),
                pa.array(rank[valid]),
                names.take(pa.array(owner)),
                pa.array(neighbor - self._firsts[owner]),
                pa.array(scores[valid]),
            ],
            schema=schemas.NEIGHBORS,
        )


def _parts(block: Float32Matrix, size: int) -> Iterator[Float32Matrix]:
    for start in range(0, len(block), size):
        yield block[start : start + size]


def _scaled(rows: Float32Matrix, norms: Float64) -> Float32Matrix:
    """Unit rows in float32. A zero row stays zero."""
    unit = np.empty(rows.shape, np.float32)
    np.divide(rows, np.where(norms == 0, 1.0, norms)[:, None], out=unit, casting="same_kind")
    return unit
