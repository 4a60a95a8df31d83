"""Co-activation: the Jaccard index of two features' sets of active tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.by_token import SegmentByToken, TokenRows
from featuredb.store.files.memory import return_freed_memory
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Segment
from ingest.extract.overlap import in_order

_SHARES = 64
"""Parts of the features for threads. Many, since their work differs widely."""

_ROW_GROUPS = 64
"""Row groups of the by-token copy counted at once, about ten million activations. More overflow
the processor's cache, fewer pass over the whole table too often (4, 16, 64 and 200 took 4.9, 1.9,
1.3 and 3.1 s for 20 million activations)."""

_BYTES_PER_ROW = 64
"""Peak memory per activation of a piece while its gaps are decoded."""

_DECODING = 2
"""Pieces decoded while one is counted."""


def coactivation(
    layout: Layout,
    sae: str,
    d_sae: int,
    segments: Sequence[Segment],
    bits: int,
    memory: int = 1 << 30,
) -> pa.Table:
    """Rows of NEIGHBORS: per feature the features of highest Jaccard index, ties by feature id.

    Counts are exact: every recorded token is counted. Features that never fire have no rows.
    memory: bytes to work in, three fifths of them for the table of pair counts. If d_sae² counts
    of 4 bytes fit, one pass over the tokens fills it. Otherwise each pass fills the rows that fit.
    """
    counts = np.zeros(d_sae, np.int64)
    for segment in segments:
        offsets = np.load(layout.root / segment.directory.path).astype(np.int64)
        counts += offsets[1:] - offsets[:-1]
    for_pairs = memory * 3 // 5
    block = max(1, min(d_sae, for_pairs // (4 * d_sae)))
    blocks = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for first in range(0, d_sae, block):
            together = np.zeros((min(block, d_sae - first), d_sae), np.int32)
            half = len(together) == d_sae
            for rows in _token_rows(layout, segments, bits, memory - for_pairs):
                _count(pool, rows, first, half, together)
                # Otherwise each thread's heap keeps the size of its largest piece.
                return_freed_memory()
            if half:
                _mirror(together)
            blocks.append(_best(pool, first, together, counts))
    return _table(sae, [np.concatenate(column) for column in zip(*blocks, strict=True)])


def _token_rows(
    layout: Layout, segments: Sequence[Segment], bits: int, memory: int
) -> Iterator[TokenRows]:
    most_rows = memory // (_DECODING + 1) // _BYTES_PER_ROW

    def at_once(segment: Segment) -> int:
        tokens = sum(entry.file.rows for entry in segment.token_files)
        rows_per_group = segment.rows / max(1, tokens) * schemas.TOKEN_ROW_GROUP
        return max(1, min(_ROW_GROUPS, int(most_rows / max(1.0, rows_per_group))))

    # Not memory-mapped, since the mapped pages would add up to the whole store.
    files = ParquetFiles(layout.root, limit=_DECODING + 1, memory_map=False)
    pieces = (
        (reader, entry, groups)
        for reader in (SegmentByToken(segment, files, bits) for segment in segments)
        for entry in reader.segment.token_files
        for groups in reader.cuts(entry, at_once(reader.segment))
    )
    try:
        yield from in_order(lambda piece: piece[0].piece(*piece[1:]), pieces, _DECODING)
    finally:
        files.close()


def _count(
    pool: ThreadPoolExecutor,
    rows: TokenRows,
    first: int,
    half: bool,
    together: npt.NDArray[np.int32],
) -> None:
    """Add how often features first, first + 1, … fire on a token with each feature.

    Feature by feature: the lists of its tokens are counted into one row, which stays in the
    processor's cache. half: only with features of higher id, which is every pair once.
    """
    d_sae = together.shape[1]
    starts, begins, ends = _by_feature(rows.feature_id, rows.offsets, d_sae, half)
    edges = np.linspace(0, len(together), _SHARES + 1).astype(np.int64)

    def share(edge: tuple[int, int]) -> None:
        _count_rows(rows.feature_id, starts, begins, ends, first, *edge, together)

    list(pool.map(share, pairwise(edges)))


@nb.njit(cache=True, nogil=True)
def _by_feature(
    feature_id: npt.NDArray[Any], offsets: npt.NDArray[np.int64], d_sae: int, half: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """What to count each feature with: feature f has the ranges begins[i] to ends[i] of
    `feature_id` for starts[f] <= i < starts[f + 1]: the lists of its tokens, or with `half` what
    comes after it there. Side by side, so that a rare feature costs one cache miss a token."""
    n = len(feature_id)
    starts = np.zeros(d_sae + 1, np.int64)
    for e in range(n):
        starts[feature_id[e] + 1] += 1
    for f in range(d_sae):
        starts[f + 1] += starts[f]
    place = starts[:-1].copy()
    begins = np.empty(n, np.int32)
    ends = np.empty(n, np.int32)
    for t in range(len(offsets) - 1):
        for e in range(offsets[t], offsets[t + 1]):
            f = feature_id[e]
            begins[place[f]] = e + 1 if half else offsets[t]
            ends[place[f]] = offsets[t + 1]
            place[f] += 1
    return starts, begins, ends


@nb.njit(cache=True, nogil=True)
def _count_rows(
    feature_id: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int32],
    first: int,
    low: int,
    high: int,
    together: npt.NDArray[np.int32],
) -> None:
    """Rows low <= i < high of `together`."""
    for row in range(low, high):
        counts_of_row = together[row]
        for at in range(starts[first + row], starts[first + row + 1]):
            for other in range(begins[at], ends[at]):
                counts_of_row[feature_id[other]] += 1


@nb.njit(cache=True, nogil=True)
def _mirror(together: npt.NDArray[np.int32]) -> None:
    """Copy what is right of the diagonal to its left, in tiles that fit the cache."""
    n, tile = len(together), 64
    for a in range(0, n, tile):
        for b in range(a, n, tile):
            for i in range(a, min(a + tile, n)):
                for j in range(max(b, i + 1), min(b + tile, n)):
                    together[j, i] = together[i, j]


def _best(
    pool: ThreadPoolExecutor,
    first: int,
    together: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[Any]]:
    """(feature, rank, partner, score) of the NEIGHBORS_KEPT partners of each row's feature."""
    limit = schemas.NEIGHBORS_KEPT
    partner = np.empty((len(together), limit), np.int64)
    score = np.empty((len(together), limit), np.float64)
    lengths = np.zeros(len(together), np.int64)
    edges = np.linspace(0, len(together), _SHARES + 1).astype(np.int64)

    def share(edge: tuple[int, int]) -> None:
        _best_rows(together, first, *edge, counts, partner, score, lengths)

    list(pool.map(share, pairwise(edges)))
    used = np.arange(limit) < lengths[:, None]
    row, place = np.nonzero(used)
    rank = (place + 1).astype(np.int32)
    return row + first, rank, partner[used], score[used].astype(np.float32)


@nb.njit(cache=True, nogil=True)
def _best_rows(
    together: npt.NDArray[np.int32],
    first: int,
    low: int,
    high: int,
    counts: npt.NDArray[np.int64],
    partner: npt.NDArray[np.int64],
    score: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int64],
) -> None:
    limit = partner.shape[1]
    for row in range(low, high):
        feature = first + row
        ids, scores, used = partner[row], score[row], 0
        for other in range(together.shape[1]):
            both = together[row, other]
            if both == 0 or other == feature:
                continue
            jaccard = both / (counts[feature] + counts[other] - both)
            # Ids ascend, so an equal score ranks after the existing ones.
            if used == limit and jaccard <= scores[limit - 1]:
                continue
            at = min(used, limit - 1)
            while at > 0 and scores[at - 1] < jaccard:
                ids[at], scores[at] = ids[at - 1], scores[at - 1]
                at -= 1
            ids[at], scores[at] = other, jaccard
            used = min(used + 1, limit)
        lengths[row] = used


def _table(sae: str, columns: Sequence[npt.NDArray[Any]]) -> pa.Table:
    feature, rank, partner, score = columns
    name = pa.array([sae] * len(feature), pa.string())
    return pa.table(
        [
            name,
            pa.array(feature, pa.int64()),
            pa.array(rank, pa.int32()),
            name,
            pa.array(partner, pa.int64()),
            pa.array(score, pa.float32()),
        ],
        schema=schemas.NEIGHBORS,
    )
