"""Features near a feature or a vector: by decoder or encoder direction, or by firing together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError, UnknownFeatureError
from featuredb.render.view import Heading, Table, View
from featuredb.store import schemas
from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.names import NO_SAE, parse_feature, sae_names
from featuredb.store.snapshot import File, Sae, Snapshot
from featuredb.store.store import Store
from featuredb.store.vectors.directions import comparable, length
from queries.answers import Answer, of_feature
from queries.arguments import check_k
from queries.catalog import literals
from queries.catalog.summaries import SUMMARY, summaries
from queries.connection import Reader
from queries.directions import stored_direction
from queries.question import Macro, Question
from queries.show import counted, feature_sizes, feature_table, score_column

KINDS = ("decoder", "encoder", "coactivation")

_COLUMNS = ["sae", "feature_id", "neighbor_sae", "neighbor_id", "score"]


TOO_MANY = (
    f"the neighbor graph keeps {schemas.NEIGHBORS_KEPT} per feature, not {{k}}: "
    "for more, ask Database.near or `featuredb near`"
)


@dataclass(frozen=True, repr=False)
class Neighbors(Answer):
    """Features near one feature or vector, by score descending, ties by feature id.

    Columns: of_sae string and of_feature_id i64 (the feature, null for a vector), rank i32, sae
    string and feature_id i64 (the neighbor), score f32 (cosine for `by` decoder or encoder,
    Jaccard for coactivation), density f64, max_activation f32, top_tokens list<string>,
    promoted_tokens list<string>. `method` says how they were found: ``graph`` or ``exact``, which
    miss nothing, or ``ivf``, an index that finds the share `recall` of the 10 nearest, measured
    when it was built.
    """

    kind: ClassVar[str] = "neighbors"

    of_sae: str | None
    of_feature_id: int | None
    by: str
    method: str = "exact"
    recall: float = 1.0

    @property
    def feature(self) -> str:
        """`sae/1234`, as every question takes it, or `vector`."""
        return "vector" if self.of_sae is None else f"{self.of_sae}/{self.of_feature_id}"

    def view(self) -> View:
        """The neighbors under a heading that says how they were found."""
        after = f" by {self.by} · {counted(len(self), 'neighbor')}"
        if self.method == "ivf":
            after += f" · approximate, recall@10 {self.recall:.3f}"
        heading = [Heading("near ", self.feature, after)]
        return View([heading, [self.features()]] if len(self) else [heading])

    def features(self) -> Table:
        """Only the neighbors, for a card."""
        rows = list(self)
        score = "jaccard" if self.by == "coactivation" else "cosine"
        return feature_table(rows, [score_column(score, rows, "score"), *feature_sizes(rows)])


class Nearest(NamedTuple):
    """Features in order, their scores float32, and how they were found.

    recall: what share of the 10 nearest that way of searching finds.
    """

    names: Sequence[str]
    numbers: Sequence[int]
    scores: npt.NDArray[np.float32]
    method: str
    recall: float = 1.0


def near(
    reader: Reader, feature: int | str, k: int = 20, by: str = "decoder", *, exact: bool = False
) -> Neighbors:
    """See `featuredb.Database.near`. Scored by the rule of `featuredb.store.vectors.exact`."""
    store = reader.store
    sae, number = parse_feature(store.snapshot, feature)
    k = check_k(k)
    if by not in KINDS:
        raise QueryError(f"by must be one of {', '.join(KINDS)}, not {by!r}")
    if by == "coactivation" or k <= schemas.NEIGHBORS_KEPT:
        nearest = _from_graph(store, sae, number, k, by)
    else:
        nearest = _from_directions(store, sae, number, k, by, exact)
    return _answer(store, nearest, sae.name, number, by)


def near_vector(
    reader: Reader,
    vector: Any,
    k: int = 20,
    by: str = "decoder",
    sae: str | None = None,
    *,
    exact: bool = False,
) -> Neighbors:
    """See `featuredb.Database.near_vector`."""
    store = reader.store
    k = check_k(k)
    if by not in KINDS[:2]:
        raise QueryError(f"by must be decoder or encoder for a vector, not {by!r}")
    query = _checked(vector)
    nearest = _search(store, _place(store, len(query), by, sae), query, k, by, exact)
    return _answer(store, nearest, None, None, by)


def _checked(vector: Any) -> npt.NDArray[np.float64]:
    """The vector as float64 [d], scaled so that no square of it overflows."""
    try:
        query = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise QueryError(f"the vector must be numbers ({error})") from None
    if query.ndim != 1:
        raise QueryError(
            f"the vector must have one dimension, not {query.ndim}: give one at a time"
        )
    if not np.isfinite(query).all():
        at = int(np.flatnonzero(~np.isfinite(query))[0])
        raise QueryError(f"the vector's values must be finite, value {at} is {query[at]}")
    if not query.any():
        raise QueryError("the vector is all zeros, which is near nothing: give a direction")
    return query / float(np.abs(query).max())


def _place(store: Store, width: int, by: str, name: str | None) -> Sae:
    """An SAE. The vector is compared with its directions and all comparable ones."""
    snapshot = store.snapshot
    if name is not None:
        sae = next((s for s in snapshot.saes if s.name == name), None)
        if sae is None:
            raise UnknownFeatureError(NO_SAE.format(name=name, names=sae_names(snapshot)))
        if length(sae, by) != width:
            raise QueryError(
                f"the vector has {width} values, {by} directions of {name} have {length(sae, by)}"
            )
        return sae
    fitting = [s for s in snapshot.saes if length(s, by) == width]
    if not fitting:
        known = ", ".join(str(n) for n in sorted({length(s, by) for s in snapshot.saes})) or "none"
        raise QueryError(f"the vector has {width} values, {by} directions here have {known}")
    if len(comparable(fitting, fitting[0], by)) < len(fitting):
        names = ", ".join(s.name for s in fitting)
        raise QueryError(
            f"directions of {width} values belong to several hooks: say which with sae, as one of "
            f"{names}"
        )
    return fitting[0]


_NOTHING = Nearest([], [], np.empty(0, np.float32), "graph")


def _from_graph(store: Store, sae: Sae, feature: int, k: int, by: str) -> Nearest:
    """From the stored graph: its rows of one feature are in the order of their rank."""
    derived = store.snapshot.derived
    path = {
        "decoder": derived.neighbors_decoder.path,
        "encoder": derived.neighbors_encoder.path,
        "coactivation": derived.coactivation.path,
    }[by]
    groups = store.graph_groups(path).holding(sae.name, feature)
    if not groups:
        return _NOTHING
    table = store.files.read(path, groups, _COLUMNS)
    rows = np.flatnonzero(chunk_to_numpy(table.column("feature_id")) == feature)
    if len(rows) == 0:
        return _NOTHING
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


def _from_directions(store: Store, sae: Sae, feature: int, k: int, by: str, exact: bool) -> Nearest:
    """From the directions, leaving out the feature itself."""
    direction = stored_direction(store, sae, feature, by)
    nearest = _search(store, sae, direction, k + 1, by, exact)
    others = [
        i
        for i, which in enumerate(zip(nearest.names, nearest.numbers, strict=True))
        if which != (sae.name, feature)
    ][:k]
    return nearest._replace(
        names=[nearest.names[i] for i in others],
        numbers=[nearest.numbers[i] for i in others],
        scores=nearest.scores[others],
    )


def _search(
    store: Store, sae: Sae, query: npt.NDArray[np.floating], k: int, by: str, exact: bool
) -> Nearest:
    """The nearest directions among those comparable with `sae`."""
    directions = store.directions
    group = directions.group(sae, by)
    firsts = np.cumsum([0] + [s.d_sae for s in group])
    index = None if exact else directions.index(sae, by)
    if index is None:
        rows, scores = directions.exact(sae, by).search(query, k)
        method, recall = "exact", 1.0
    else:
        rows, scores = directions.approximate(sae, by, index).search(query, k)
        method, recall = "ivf", index.recall
    which = np.searchsorted(firsts, rows, side="right") - 1
    names = [group[i].name for i in which]
    return Nearest(names, (rows - firsts[which]).tolist(), scores, method, recall)


def _answer(
    store: Store, nearest: Nearest, of_sae: str | None, of_feature_id: int | None, by: str
) -> Neighbors:
    asked = of_feature(of_sae, of_feature_id, len(nearest.scores))
    columns = {"of_sae": asked[0], "of_feature_id": asked[1]}
    columns |= _columns(store, nearest.names, nearest.numbers, nearest.scores)
    return Neighbors(
        pa.table(columns),
        of_sae=of_sae,
        of_feature_id=of_feature_id,
        by=by,
        method=nearest.method,
        recall=nearest.recall,
    )


def _columns(
    store: Store, names: Sequence[str], numbers: Sequence[int], scores: npt.NDArray[np.float32]
) -> dict[str, pa.Array]:
    """The columns of an answer after those that name the feature it is about."""
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
    return columns


def _macros(
    name: str, file: Callable[[Snapshot], File], about: str, bounded: bool
) -> tuple[Macro, ...]:
    """A macro, what it calls where the name is spelled as shown, and what it calls where not."""
    bound = "featuredb_k(k)"
    if bounded:
        too_many = f"error({literals.message(TOO_MANY, k='k')})"
        bound = f"CASE WHEN k <= {schemas.NEIGHBORS_KEPT} THEN {bound} ELSE {too_many} END"
    sae = literals.quoted("featuredb_sae(feature)")
    number = "CAST(featuredb_number(feature) AS BIGINT)"
    plain = f"concat('FROM featuredb_{name}_of(', {sae}, ', ', {number}, ', ', {bound}, ')')"
    named = f"concat('FROM featuredb_{name}_named(', {literals.FEATURE}, ', ', {bound}, ')')"
    return (
        Macro(f"featuredb_{name}_of(of_sae, id, k)", lambda snapshot: _near(snapshot, file)),
        Macro(
            f"featuredb_{name}_named(feature, k)",
            f"FROM query(CASE WHEN featuredb_row(feature) >= 0 THEN {plain} END)",
        ),
        Macro(
            f"{name}(feature, k := 20)",
            "FROM query(CASE WHEN featuredb_plain_row(feature) IS NULL "
            f"THEN {named} ELSE {plain} END)",
            about=about,
        ),
    )


def _near(snapshot: Snapshot, file: Callable[[Snapshot], File]) -> str:
    return f"""
WITH nearest AS (
    SELECT rank, neighbor_sae AS sae, neighbor_id AS feature_id, score
    FROM {literals.file(file(snapshot).path)}
    WHERE sae = of_sae AND feature_id = id AND rank <= k
)
SELECT of_sae AS of_sae, CAST(id AS BIGINT) AS of_feature_id, n.rank, n.sae, n.feature_id, n.score,
    {SUMMARY}
FROM nearest AS n JOIN {summaries(snapshot)} AS f USING (sae, feature_id)
ORDER BY n.rank"""


QUESTION = Question(
    "near",
    Neighbors,
    "near",
    (
        # Beyond the graph the directions have more to give. Co-activation has not.
        *_macros(
            "near",
            lambda snapshot: snapshot.derived.neighbors_decoder,
            "nearest decoder directions, k up to 50, of the feature of_sae, of_feature_id",
            bounded=True,
        ),
        *_macros(
            "near_encoder",
            lambda snapshot: snapshot.derived.neighbors_encoder,
            "nearest encoder directions, k up to 50",
            bounded=True,
        ),
        *_macros(
            "near_coactivation",
            lambda snapshot: snapshot.derived.coactivation,
            "features that fire on the same tokens, by Jaccard index, at most 50",
            bounded=False,
        ),
    ),
)
