"""Features near a feature: by decoder direction, encoder direction, or firing together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb import schemas
from featuredb.errors import QueryError
from featuredb.names import feature_name, parse_feature
from featuredb.parquet import chunk_to_numpy
from featuredb.results import Neighbors
from featuredb.snapshot import Sae
from featuredb.store import Store
from featuredb.vectors import cosine_top, unit_rows
from queries.checks import check_k

KINDS = ("decoder", "encoder", "coactivation")

_COLUMNS = ["sae", "feature_id", "neighbor_sae", "neighbor_id", "score"]


def near(store: Store, feature: int | str, k: int = 20, by: str = "decoder") -> Neighbors:
    """The k features nearest to `feature`, itself apart.

    by: ``"decoder"`` or ``"encoder"``, the cosine of the directions (scoring rule of
    `featuredb.vectors`) among all SAEs that read and write the same hooks with directions of one
    length; ``"coactivation"``, the Jaccard index of the two sets of active tokens in one SAE,
    only features that ever fire together and at most `schemas.NEIGHBORS_KEPT` of them.

    Score descending, ties by SAE in the snapshot's order, then feature id; no rows where there is
    no other feature. Raises `UnknownFeatureError`, and `QueryError` for a bad k or kind.
    """
    sae, number = parse_feature(store.snapshot, feature)
    k = check_k(k)
    if by not in KINDS:
        raise QueryError(f"by must be one of {', '.join(KINDS)}, not {by!r}")
    if by == "coactivation" or k <= schemas.NEIGHBORS_KEPT:
        names, numbers, scores = _kept(store, sae, number, k, by)
    else:
        names, numbers, scores = _exact(store, sae, number, k, by)
    return Neighbors(
        _table(store, names, numbers, scores),
        feature=feature_name(store.snapshot, sae, number),
        by=by,
    )


Found = tuple[list[str], list[int], npt.NDArray[np.float32]]


def _kept(store: Store, sae: Sae, feature: int, k: int, by: str) -> Found:
    """From the stored graph: its rows of one feature are in the order of their rank."""
    derived = store.snapshot.derived
    path = {
        "decoder": derived.neighbors_decoder.path,
        "encoder": derived.neighbors_encoder.path,
        "coactivation": derived.coactivation.path,
    }[by]
    groups = store.graph_groups(path).holding(sae.name, feature)
    if not groups:
        return [], [], np.empty(0, np.float32)
    table = store.files.read(path, groups, _COLUMNS)
    rows = np.flatnonzero(chunk_to_numpy(table.column("feature_id")) == feature)
    if len(rows) == 0:
        return [], [], np.empty(0, np.float32)
    # One SAE's rows of a feature are consecutive; another SAE's may be in the same row groups.
    table = table.slice(int(rows[0]), int(rows[-1] - rows[0]) + 1)
    own = np.array(table.column("sae").to_pylist(), dtype=object) == sae.name
    own &= chunk_to_numpy(table.column("feature_id")) == feature
    table = table.filter(pa.array(own)).slice(0, k)
    return (
        table.column("neighbor_sae").to_pylist(),
        table.column("neighbor_id").to_pylist(),
        chunk_to_numpy(table.column("score")),
    )


def comparable(store: Store, sae: Sae) -> list[Sae]:
    """The SAEs whose directions may be compared with those of `sae`, itself among them."""
    return [
        s
        for s in store.snapshot.saes
        if (s.hook, s.hook_out, s.d_in, s.d_out) == (sae.hook, sae.hook_out, sae.d_in, sae.d_out)
    ]


def _exact(store: Store, sae: Sae, feature: int, k: int, by: str) -> Found:
    """From the directions themselves."""
    group = comparable(store, sae)
    rows = np.concatenate([getattr(store.directions(s), by) for s in group])
    firsts = np.cumsum([0] + [s.d_sae for s in group])
    own = int(firsts[group.index(sae)]) + feature
    half = np.concatenate([store.matrix(s, by) for s in group])
    found, scores = cosine_top(unit_rows(rows[own : own + 1]), half, rows, k + 1)
    others = found[0] != own
    ids, kept = found[0][others][:k], scores[0][others][:k]
    which = np.searchsorted(firsts, ids, side="right") - 1
    return [group[i].name for i in which], (ids - firsts[which]).tolist(), kept


def _table(
    store: Store, names: Sequence[str], numbers: Sequence[int], scores: npt.NDArray[np.float32]
) -> pa.Table:
    saes = {s.name: s for s in store.snapshot.saes}
    rows = [store.features.row(saes[n], i) for n, i in zip(names, numbers, strict=True)]
    about = store.features.summaries(rows)
    columns = {
        "rank": pa.array(range(1, len(rows) + 1), pa.int32()),
        "sae": pa.array(names, pa.string()),
        "feature_id": pa.array(numbers, pa.int64()),
        "score": pa.array(scores, pa.float32()),
    }
    for name in ("density", "max_activation", "top_tokens", "promoted_tokens"):
        columns[name] = about.column(name)
    return pa.table(columns)
