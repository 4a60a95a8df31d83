"""How often every two features of an SAE are active in the same token, or in the same document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from featuredb.store import schemas
from featuredb.store.by_token import SegmentByToken
from featuredb.store.files.location import Root
from featuredb.store.files.memory import return_freed_memory
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.positions import context_of
from featuredb.store.snapshot import Segment
from ingest.extract.in_order import in_order

SHARES = 64
"""Parts of the features for threads. Many, since their work differs widely."""

_ROW_GROUPS = 64
"""Row groups of the by-token copy counted at once, about ten million activations. More overflow
the processor's cache, fewer pass over the whole table too often (4, 16, 64 and 200 took 4.9, 1.9,
1.3 and 3.1 s for 20 million activations)."""

_BYTES_PER_ROW = 64
"""Peak memory per activation of a piece while its gaps are decoded."""

_DECODING = 2
"""Pieces decoded while one is counted."""


class ActiveUnits(NamedTuple):
    """Consecutive tokens, or documents, with their active features.

    offsets: int64 [u + 1]: unit i has entries offsets[i] to offsets[i + 1] of feature_id [n],
    ascending, each once. context: int64 [u], of tokens.
    """

    offsets: npt.NDArray[np.int64]
    feature_id: npt.NDArray[Any]
    context: npt.NDArray[np.int64]


class Block(NamedTuple):
    """together: int32 [rows, d_sae]: in how many units features first, first + 1, … are active with
    each feature. What stands for a feature with itself is undefined."""

    first: int
    together: npt.NDArray[np.int32]


def pair_counts(
    pool: ThreadPoolExecutor,
    pieces: Callable[[int], Iterator[ActiveUnits]],
    d_sae: int,
    memory: int,
) -> Iterator[Block]:
    """The counts of all pairs, a block of features at a time, every unit counted.

    pieces: gives all units, working in the bytes that it is given. memory: bytes to work in, three
    fifths of them for the table of counts. If d_sae² counts of 4 bytes fit, one pass over the
    units fills it. Otherwise each pass fills the rows that fit.
    """
    for_pairs = memory * 3 // 5
    block = max(1, min(d_sae, for_pairs // (4 * d_sae)))
    for first in range(0, d_sae, block):
        together = np.zeros((min(block, d_sae - first), d_sae), np.int32)
        half = len(together) == d_sae
        for units in pieces(memory - for_pairs):
            _count(pool, units, first, half, together)
            # Otherwise each thread's heap keeps the size of its largest piece.
            return_freed_memory()
        if half:
            _mirror(together)
        yield Block(first, together)


def token_units(
    root: Root, segments: Sequence[Segment], bits: int, memory: int
) -> Iterator[ActiveUnits]:
    """Every token with an active feature, in order."""
    most_rows = memory // (_DECODING + 1) // _BYTES_PER_ROW

    def at_once(segment: Segment) -> int:
        tokens = sum(entry.file.rows for entry in segment.token_files)
        rows_per_group = segment.rows / max(1, tokens) * schemas.TOKEN_ROW_GROUP
        return max(1, min(_ROW_GROUPS, int(most_rows / max(1.0, rows_per_group))))

    # Not memory-mapped, since the mapped pages would add up to the whole store.
    files = ParquetFiles(root, limit=_DECODING + 1, memory_map=False)
    pieces = (
        (reader, entry, groups)
        for reader in (SegmentByToken(segment, files, bits) for segment in segments)
        for entry in reader.segment.token_files
        for groups in reader.cuts(entry, at_once(reader.segment))
    )
    try:
        for entry, rows in in_order(lambda p: (p[1], p[0].piece(*p[1:])), pieces, _DECODING):
            context = context_of(rows.position.astype(np.int64), bits) + entry.base_context
            yield ActiveUnits(rows.offsets, rows.feature_id, context)
    finally:
        files.close()


def _count(
    pool: ThreadPoolExecutor,
    units: ActiveUnits,
    first: int,
    half: bool,
    together: npt.NDArray[np.int32],
) -> None:
    """Add how often features first, first + 1, … are active in a unit with each feature.

    Feature by feature: the lists of its units are counted into one row, which stays in the
    processor's cache. half: only with features of higher id, which is every pair once.
    """
    d_sae = together.shape[1]
    starts, begins, ends = _by_feature(units.feature_id, units.offsets, d_sae, half)
    edges = np.linspace(0, len(together), SHARES + 1).astype(np.int64)

    def share(edge: tuple[int, int]) -> None:
        _count_rows(units.feature_id, starts, begins, ends, first, *edge, together)

    list(pool.map(share, pairwise(edges)))


@nb.njit(cache=True, nogil=True)
def _by_feature(
    feature_id: npt.NDArray[Any], offsets: npt.NDArray[np.int64], d_sae: int, half: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """What to count each feature with: feature f has the ranges begins[i] to ends[i] of
    `feature_id` for starts[f] <= i < starts[f + 1]: the lists of its units, or with `half` what
    comes after it there. Side by side, so that a rare feature costs one cache miss a unit."""
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
