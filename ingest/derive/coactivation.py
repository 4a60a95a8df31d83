"""Co-activation: the Jaccard index of two features' sets of active tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Segment
from ingest.derive.pair_counts import SHARES, pair_counts, token_units


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
    memory: bytes to work in, as `pair_counts` divides them.
    """
    counts = np.zeros(d_sae, np.int64)
    for segment in segments:
        offsets = np.load(layout.root / segment.directory.path).astype(np.int64)
        counts += offsets[1:] - offsets[:-1]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pieces = partial(token_units, layout.root, segments, bits)
        blocks = [
            _best(pool, first, together, counts)
            for first, together in pair_counts(pool, pieces, d_sae, memory)
        ]
    return _table(sae, [np.concatenate(column) for column in zip(*blocks, strict=True)])


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
    edges = np.linspace(0, len(together), SHARES + 1).astype(np.int64)

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
