"""Finding what is nearest: in the stored graph, among directions, by firing together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from featuredb.store.vectors.directions import length
from queries.coactive import coactive
from queries.connection import Reader
from queries.directions import stored_direction

_COLUMNS = ["sae", "feature_id", "neighbor_sae", "neighbor_id", "score"]


class Nearest(NamedTuple):
    """Features in order, their scores float32, and how they were found.

    recall: what share of the 10 nearest that way of searching finds.
    """

    names: Sequence[str]
    numbers: Sequence[int]
    scores: npt.NDArray[np.float32]
    method: str
    recall: float = 1.0


class Among(NamedTuple):
    """The directions that are searched: those of an SAE, and of all comparable with it.

    alone: only its own. opposite: the most negative cosine is wanted. exact: without an index.
    """

    sae: Sae
    by: str
    alone: bool = False
    opposite: bool = False
    exact: bool = False


def from_graph(store: Store, sae: Sae, feature: int, k: int, by: str) -> Nearest:
    """From the stored graph: its rows of one feature are in the order of their rank."""
    derived = store.snapshot.derived
    path = {
        "decoder": derived.neighbors_decoder.path,
        "encoder": derived.neighbors_encoder.path,
        "coactivation": derived.coactivation.path,
    }[by]
    groups = store.graph_groups(path).holding(sae.name, feature)
    if not groups:
        return NOTHING
    table = store.files.read(path, groups, _COLUMNS)
    rows = np.flatnonzero(chunk_to_numpy(table.column("feature_id")) == feature)
    if len(rows) == 0:
        return NOTHING
    # One SAE's rows of a feature are consecutive. Another SAE's may be in the same row groups.
    table = table.slice(int(rows[0]), int(rows[-1] - rows[0]) + 1)
    mask = np.array(table.column("sae").to_pylist(), dtype=object) == sae.name
    mask &= chunk_to_numpy(table.column("feature_id")) == feature
    table = table.filter(pa.array(mask)).slice(0, k)
    return Nearest(
        table.column("neighbor_sae").to_pylist(),
        table.column("neighbor_id").to_pylist(),
        chunk_to_numpy(table.column("score")),
        "graph",
    )


NOTHING = Nearest([], [], np.empty(0, np.float32), "graph")


def from_feature(store: Store, own: Sae, feature: int, k: int, among: Among) -> Nearest:
    """From the directions, leaving out the feature itself. Raises `QueryError` for other widths."""
    sae, by = among.sae, among.by
    if length(own, by) != length(sae, by):
        raise QueryError(
            f"{by} directions of {own.name} have {length(own, by)} values, those of {sae.name} "
            f"have {length(sae, by)}: ask by coactivation"
        )
    nearest = search(store, stored_direction(store, own, feature, by), k + 1, among)
    others = [
        i
        for i, which in enumerate(zip(nearest.names, nearest.numbers, strict=True))
        if which != (own.name, feature)
    ][:k]
    return nearest._replace(
        names=[nearest.names[i] for i in others],
        numbers=[nearest.numbers[i] for i in others],
        scores=nearest.scores[others],
    )


def search(store: Store, query: npt.NDArray[np.floating], k: int, among: Among) -> Nearest:
    """The nearest directions to a vector, or the most opposite. An index knows only nearest."""
    sae, by, alone, opposite, exact = among
    directions = store.directions
    group = directions.group(sae, by, alone=alone)
    firsts = np.cumsum([0] + [s.d_sae for s in group])
    index = None if exact or alone or opposite else directions.index(sae, by)
    if index is None:
        wanted = -query if opposite else query
        rows, scores = directions.exact(sae, by, alone=alone).search(wanted, k)
        method, recall = "exact", 1.0
    else:
        rows, scores = directions.approximate(sae, by, index).search(query, k)
        method, recall = "ivf", index.recall
    if opposite:
        scores = np.float32(0) - scores  # no -0
    which = np.searchsorted(firsts, rows, side="right") - 1
    names = [group[i].name for i in which]
    return Nearest(names, (rows - firsts[which]).tolist(), scores, method, recall)


def firing_together(reader: Reader, feature: str, k: int, unit: str, other: Sae) -> Nearest:
    """By the Jaccard index of the units in which they are active, counted as `coactive` does."""
    found = coactive(reader, feature, k, unit, "jaccard", sae=other.name, min_both=1).table
    return Nearest(
        found.column("sae").to_pylist(),
        found.column("feature_id").to_pylist(),
        chunk_to_numpy(found.column("jaccard")).astype(np.float32),
        "exact",
    )
