"""Build an approximate index over directions where exact search is slow.

FAISS learns centroids from a sample of the unit rows by spherical k-means. Every row goes to the
list of its nearest centroid. The number of lists probed per query is the smallest that finds nearly
all of the ten nearest, measured against exact search.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.render.progress import log
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Sae, VectorIndex, Vectors
from featuredb.store.vectors.directions import (
    DirectionRows,
    Float32Matrix,
    HalfMatrix,
    comparable,
    length,
    scanned_rows,
)
from featuredb.store.vectors.exact import ExactSearch
from featuredb.store.vectors.ivf import InvertedLists, gathered

INDEX_BEYOND = 1_000_000
"""Number of comparable features above which an index is built. Below it, exact search takes at most
tens of milliseconds."""

MEMORY = 1 << 30
"""Default working memory in bytes."""

RECALL = 0.99
"""Target recall of the ten nearest."""

_NEAREST = 10
_SAMPLE = 256
_ROUNDS = 10
_SEED = 0
_PER_LIST = 64
"""Training rows per centroid. FAISS ignores any beyond these."""

_LEAST_PER_LIST = 40
"""Training rows per centroid below which FAISS warns: fewer centroids are learned instead."""

_BLOCK = 16_384


class _Measured(NamedTuple):
    probes: int
    recall: float
    sample: int


def write_indexes(
    layout: Layout,
    folder: Path,
    final: Path,
    saes: Sequence[Sae],
    vectors: Sequence[Vectors],
    kind: str,
    *,
    beyond: int = INDEX_BEYOND,
    memory: int = MEMORY,
) -> tuple[VectorIndex, ...]:
    """An index for each group of comparable SAEs with more than `beyond` features.

    Files are written into `folder`, which is about to be renamed to `final`. kind: ``decoder`` or
    ``encoder``. memory: bytes of working memory, which bounds the
    training sample.
    """
    known = {v.sae: v for v in vectors}
    made: list[VectorIndex] = []
    for sae in saes:
        group = comparable(saes, sae, kind)
        if not length(sae, kind) or sae != group[0] or sum(s.d_sae for s in group) <= beyond:
            continue
        members = [known[s.name] for s in group]
        index = _index(layout, members, kind, memory)
        probes, recall, sample = _measure(index, layout, members, kind)
        log.info(
            f"index over {sum(s.d_sae for s in group):,} {kind} directions: recall@{_NEAREST} "
            f"{recall:.3f} against exact, {probes} of {len(index.centroids):,} lists probed"
        )
        stem = f"ivf.{kind}.{len(made)}"
        made.append(
            VectorIndex(
                kind=kind,
                saes=tuple(s.name for s in group),
                centroids=_write(layout, folder, final, f"{stem}.centroids.npy", index.centroids),
                lists=_write(layout, folder, final, f"{stem}.lists.npy", index.lists),
                probes=probes,
                recall=recall,
                sample=sample,
            )
        )
    return tuple(made)


def _write(
    layout: Layout, folder: Path, final: Path, name: str, array: npt.NDArray[np.generic]
) -> File:
    np.save(folder / name, array)
    return file_entry(layout, folder / name, folder, final, len(array))


class _Index(NamedTuple):
    """Arrays of an `InvertedLists`."""

    centroids: Float32Matrix
    lists: npt.NDArray[np.int64]
    halves: list[HalfMatrix]


def _index(layout: Layout, vectors: Sequence[Vectors], kind: str, memory: int) -> _Index:
    halves = [scanned_rows(layout.root, v, kind) for v in vectors]
    n = sum(map(len, halves))
    centroids = _centroids(halves, n, memory)
    owner = _nearest_centroids(halves, n, centroids)
    order = np.argsort(owner, kind="stable")
    begins = np.searchsorted(owner[order], np.arange(len(centroids) + 1))
    return _Index(centroids, np.concatenate([begins, order]).astype(np.int64), halves)


def _centroids(halves: Sequence[HalfMatrix], n: int, memory: int) -> Float32Matrix:
    """About 4√n centroids, as a power of two. Fewer if memory holds fewer training rows."""
    import faiss

    width = halves[0].shape[1]
    # FAISS copies the sample while it trains.
    room = max(_LEAST_PER_LIST, memory // (2 * 4 * width))
    count = 1 << round(np.log2(4 * np.sqrt(n)))
    count = max(1, min(count, room // _LEAST_PER_LIST, n // _LEAST_PER_LIST))
    sample = min(n, count * _PER_LIST, room)
    chosen = np.sort(np.random.default_rng(_SEED).permutation(n)[:sample])
    learning = faiss.Kmeans(
        width,
        count,
        niter=_ROUNDS,
        spherical=True,
        seed=_SEED,
        max_points_per_centroid=_PER_LIST,
        min_points_per_centroid=1,
    )
    learning.train(gathered(halves, chosen).astype(np.float32))
    return np.asarray(learning.centroids, np.float32)


def _nearest_centroids(
    halves: Sequence[HalfMatrix], n: int, centroids: Float32Matrix
) -> npt.NDArray[np.int64]:
    import faiss

    owner = np.empty(n, np.int64)
    start = 0
    for half in halves:
        for low in range(0, len(half), _BLOCK):
            rows = half[low : low + _BLOCK].astype(np.float32)
            assigned = faiss.knn(rows, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
            owner[start : start + len(rows)] = assigned[:, 0]
            start += len(rows)
    return owner


def _measure(index: _Index, layout: Layout, vectors: Sequence[Vectors], kind: str) -> _Measured:
    """The fewest probes, a power of two, that reach the target recall.

    Queries are stored directions, each for its ten nearest others.
    """
    rows = DirectionRows(layout, vectors, kind)
    exact = ExactSearch(index.halves, rows.take)
    n, nearest = len(rows), min(_NEAREST, len(rows) - 1)
    asked = np.sort(np.random.default_rng(_SEED + 1).permutation(n)[:_SAMPLE])
    queries = rows.take(asked)
    true = [
        _others(exact.search(query, nearest + 1).rows, row, nearest)
        for query, row in zip(queries, asked, strict=True)
    ]
    probes, recall = 1, 0.0
    while True:
        search = InvertedLists(index.centroids, index.lists, index.halves, rows.take, probes)
        hits = [
            len(known & _others(search.search(query, nearest + 1).rows, row, nearest))
            for query, row, known in zip(queries, asked, true, strict=True)
        ]
        recall = sum(hits) / (len(asked) * nearest)
        if recall >= RECALL or probes >= len(index.centroids):
            return _Measured(min(probes, len(index.centroids)), recall, len(asked))
        probes *= 2


def _others(rows: npt.NDArray[np.int64], row: int, nearest: int) -> set[int]:
    return set(rows[rows != row][:nearest].tolist())
