"""Which features fire on the same tokens: the Jaccard index of their sets of active tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from featuredb import schemas
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Segment
from featuredb.token_major import TokenMajor, TokenRows

_BLOCK_BYTES = 512 << 20
"""Size of the dense block of pair counts held at once."""


def coactivation(
    layout: Layout, sae: str, d_sae: int, segments: Sequence[Segment], bits: int
) -> pa.Table:
    """Rows of NEIGHBORS: per feature the features of highest Jaccard index, ties by feature id.

    Counts are exact: every recorded token is counted. Features that never fire have no rows.
    """
    counts = np.zeros(d_sae, np.int64)
    for segment in segments:
        offsets = np.load(layout.root / segment.directory.path).astype(np.int64)
        counts += offsets[1:] - offsets[:-1]
    block = max(1, min(d_sae, _BLOCK_BYTES // (4 * d_sae)))
    tables = []
    for first in range(0, d_sae, block):
        end = min(d_sae, first + block)
        together = np.zeros((end - first, d_sae), np.int32)
        for rows in _token_rows(layout, segments, bits):
            active = _indicator(rows, d_sae)
            pairs = (active[:, first:end].T @ active).tocoo()
            together[pairs.row, pairs.col] += pairs.data
        tables.append(_best(sae, first, together, counts))
    return pa.concat_tables(tables) if tables else schemas.NEIGHBORS.empty_table()


def _token_rows(layout: Layout, segments: Sequence[Segment], bits: int) -> Iterator[TokenRows]:
    files = ParquetFiles(layout.root)
    try:
        for segment in segments:
            reader = TokenMajor(segment, files, bits)
            for entry in segment.token_files:
                yield reader.file(entry)
    finally:
        files.close()


def _indicator(rows: TokenRows, d_sae: int) -> Any:
    ones = np.ones(len(rows.feature_id), np.int32)
    shape = (len(rows.position), d_sae)
    return sparse.csr_matrix((ones, rows.feature_id.astype(np.int32), rows.offsets), shape=shape)


def _best(
    sae: str, first: int, together: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
) -> pa.Table:
    own = np.arange(len(together)) + first
    together[np.arange(len(together)), own] = 0
    row, other = np.nonzero(together)
    both = together[row, other].astype(np.int64)
    jaccard = both / (counts[row + first] + counts[other] - both)
    order = np.lexsort((other, -jaccard, row))
    per_row = np.bincount(row, minlength=len(together))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(per_row) - per_row, per_row) + 1
    kept = order[rank <= schemas.NEIGHBORS_KEPT]
    name = pa.array([sae] * len(kept), pa.string())
    return pa.table(
        [
            name,
            pa.array(row[kept] + first, pa.int64()),
            pa.array(rank[rank <= schemas.NEIGHBORS_KEPT], pa.int32()),
            name,
            pa.array(other[kept], pa.int64()),
            pa.array(jaccard[kept].astype(np.float32)),
        ],
        schema=schemas.NEIGHBORS,
    )
