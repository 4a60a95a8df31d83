"""Place all features in the plane, near ones together, and store where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.render.progress import log
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from featuredb.store.user_data import MAP
from ingest.derive.layout import Graph, layout
from ingest.operations.user_data import refuse_no_writing, write_user_data

NEIGHBORS = 15
"""Of the stored neighbors, how many a feature keeps near. UMAP's own default."""

_BLOCK = 8_192


def map_features(path: Path) -> int:
    """Place the features of every SAE by decoder direction, those of SAEs at one hook together.

    Returns:
        How many features were placed.

    Raises:
        DatabaseError: There is no database, or another process writes.
        StorageError: The database can only be read.
    """
    refuse_no_writing(path, "map")
    store = Store.open(path)
    rows = []
    for saes in _groups(store):
        sizes = [sae.d_sae for sae in saes]
        log.info("placing %s features of %s", f"{sum(sizes):,}", ", ".join(s.name for s in saes))
        take = store.directions.rows(saes[0], "decoder").take
        points = layout(_graph(store, saes), _start(take, sum(sizes)))
        first = 0
        for sae in saes:
            rows.append(_rows(sae, points[first : first + sae.d_sae]))
            first += sae.d_sae
    table = pa.concat_tables(rows)
    write_user_data(path, MAP, table, "map")
    return len(table)


def _groups(store: Store) -> Iterator[list[Sae]]:
    """SAEs whose directions are compared with one another."""
    seen: set[str] = set()
    for sae in store.snapshot.saes:
        if sae.name not in seen:
            group = list(store.directions.group(sae, "decoder"))
            seen |= {each.name for each in group}
            yield group


def _graph(store: Store, saes: list[Sae]) -> Graph:
    """The nearest stored neighbors of each feature, at 1 - cosine."""
    firsts = dict(
        zip((s.name for s in saes), np.cumsum([0, *(s.d_sae for s in saes)]), strict=False)
    )
    n = sum(sae.d_sae for sae in saes)
    table = store.files.read(
        store.snapshot.derived.neighbors_decoder.path,
        columns=["sae", "feature_id", "rank", "neighbor_sae", "neighbor_id", "score"],
    )
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    ours = np.isin(columns["sae"], list(firsts)) & (columns["rank"] <= NEIGHBORS)
    ours &= np.isin(columns["neighbor_sae"], list(firsts))
    head, tail = (
        np.array([firsts[name] for name in columns[sae][ours]], np.int64)
        + columns[number][ours].astype(np.int64)
        for sae, number in (("sae", "feature_id"), ("neighbor_sae", "neighbor_id"))
    )
    distance = np.maximum(0.0, 1.0 - columns["score"][ours].astype(np.float64))
    order = np.lexsort((tail, distance, head))
    starts = np.searchsorted(head[order], np.arange(n + 1)).astype(np.int64)
    return Graph(starts, tail[order], distance[order])


def _start(
    take: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]], n: int
) -> npt.NDArray[np.float64]:
    """The first two principal components of all directions, [n, 2]. Signs are made to agree."""
    blocks = [np.arange(i, min(i + _BLOCK, n)) for i in range(0, n, _BLOCK)]
    width = take(blocks[0][:1]).shape[1]
    total, squares = np.zeros(width), np.zeros((width, width))
    for block in blocks:
        rows = take(block).astype(np.float64)
        total += rows.sum(axis=0)
        squares += rows.T @ rows
    mean = total / n
    _, vectors = np.linalg.eigh(squares / n - np.outer(mean, mean))
    axes = vectors[:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    points = np.zeros((n, 2))
    for block in blocks:
        points[block, : axes.shape[1]] = (take(block) - mean) @ axes
    return points


def _rows(sae: Sae, points: npt.NDArray[np.float32]) -> pa.Table:
    n = len(points)
    return pa.table(
        {
            "sae_sha256": [sae.sha256] * n,
            "hook": [sae.hook] * n,
            "feature_id": np.arange(n, dtype=np.int64),
            "x": points[:, 0],
            "y": points[:, 1],
        }
    )
