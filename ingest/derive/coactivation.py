"""Which features fire on the same tokens: the Jaccard index of their sets of active tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb import schemas
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Segment
from featuredb.token_major import TokenMajor, TokenRows
from ingest.runs import ranges, stable_order

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
        together = np.zeros((min(block, d_sae - first), d_sae), np.int32)
        for rows in _token_rows(layout, segments, bits):
            _count(rows, first, together)
        tables.append(_best(sae, first, together, counts))
    return pa.concat_tables(tables) if tables else schemas.NEIGHBORS.empty_table()


def _token_rows(layout: Layout, segments: Sequence[Segment], bits: int) -> Iterator[TokenRows]:
    # Each is read once: kept open, what is mapped of them would add up to the whole store.
    files = ParquetFiles(layout.root, limit=1)
    try:
        for segment in segments:
            reader = TokenMajor(segment, files, bits)
            for entry in segment.token_files:
                yield reader.file(entry)
    finally:
        files.close()


def _count(rows: TokenRows, first: int, together: npt.NDArray[np.int32]) -> None:
    """Add how often features first, first + 1, … fire on a token with each feature.

    Feature by feature: the lists of its tokens, joined and counted into a row that stays in the
    processor's cache; three times as fast as multiplying the sparse matrix by its transpose.
    """
    ids = rows.feature_id.astype(np.int64)
    lengths = np.diff(rows.offsets)
    token = np.repeat(np.arange(len(lengths)), lengths)[stable_order(rows.feature_id)]
    counts = np.bincount(ids, minlength=together.shape[1])
    ends = np.cumsum(counts)
    for row in np.flatnonzero(counts[first : first + len(together)]):
        feature = first + row
        own = token[ends[feature] - counts[feature] : ends[feature]]
        others = ids[ranges(rows.offsets[own], lengths[own])]
        together[row] += np.bincount(others, minlength=together.shape[1]).astype(np.int32)


def _best(
    sae: str, first: int, together: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
) -> pa.Table:
    """The NEIGHBORS_KEPT partners of highest Jaccard index of each row's feature."""
    partners, scores, kept = [], [], []
    for row, both in enumerate(together):
        feature = first + row
        both[feature] = 0
        other = np.flatnonzero(both)
        jaccard = both[other] / (counts[feature] + counts[other] - both[other])
        if len(other) > schemas.NEIGHBORS_KEPT:
            # Only those at or above the last one kept need sorting.
            last = len(other) - schemas.NEIGHBORS_KEPT
            chosen = jaccard >= np.partition(jaccard, last)[last]
            other, jaccard = other[chosen], jaccard[chosen]
        order = np.lexsort((other, -jaccard))[: schemas.NEIGHBORS_KEPT]
        partners.append(other[order])
        scores.append(jaccard[order].astype(np.float32))
        kept.append(len(order))
    n = sum(kept)
    name = pa.array([sae] * n, pa.string())
    return pa.table(
        [
            name,
            pa.array(np.repeat(np.arange(len(kept)) + first, kept), pa.int64()),
            pa.array(ranges(np.ones(len(kept), np.int64), np.array(kept)), pa.int32()),
            name,
            pa.array(np.concatenate(partners) if partners else [], pa.int64()),
            pa.array(np.concatenate(scores) if scores else [], pa.float32()),
        ],
        schema=schemas.NEIGHBORS,
    )
