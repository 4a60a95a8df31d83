"""Features near a feature, a vector or a token: by direction, or by firing together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render.characters import label
from featuredb.render.view import Column, Heading, Part, Table, View
from featuredb.store import schemas
from featuredb.store.names import NO_DIRECTIONS, parse_feature, sae_named
from featuredb.store.snapshot import File, Sae, Snapshot
from featuredb.store.statistics import SUMMARY_COLUMNS
from featuredb.store.store import Store
from featuredb.store.vectors.directions import comparable, length
from queries import plots
from queries.answers import Answer, Row, of_feature, titled
from queries.arguments import check_choice, check_k
from queries.catalog import literals
from queries.catalog.summaries import LABELS, SUMMARY, TYPES, summaries
from queries.coactive_sql import UNITS
from queries.connection import Reader
from queries.directions import Chance, chance, chance_among
from queries.in_python import InPython, elsewhere
from queries.nearest import (
    NOTHING,
    Among,
    Nearest,
    firing_together,
    from_feature,
    from_graph,
    search,
)
from queries.question import Macro, Question
from queries.show import counted, feature_name, feature_sizes, feature_table, score_column
from queries.token_named import token_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("decoder", "encoder", "coactivation")
MATRICES = ("unembedding", "embedding")

TokenDirection = Callable[[int, str], npt.NDArray[np.float32]]
"""A token's row of a matrix of the model, from the token's id and the matrix's name."""

TOO_MANY = (
    f"the neighbor graph keeps {schemas.NEIGHBORS_KEPT} per feature, not {{k}}: "
    "for more, ask Database.near or `featuredb near`"
)


@dataclass(frozen=True, repr=False)
class Neighbors(Answer):
    """Features near one feature, vector or token, by score descending, ties by feature id.

    Columns: of_sae string and of_feature_id i64 (the feature, null for a vector or a token), rank
    i32, sae string and feature_id i64 (the neighbor), score f32 (cosine for `by` decoder or
    encoder, Jaccard for coactivation), density f64, max_activation f32, top_tokens list<string>,
    promoted_tokens list<string>, label string (the preferred one, or null). `method` says how they
    were found: ``graph`` or ``exact``, which miss nothing, or ``ivf``, an index that finds the
    share `recall` of the 10 nearest, measured when it was built.

    `chance` says what to hold the scores against (`queries.directions.Chance`). `unit` is what
    coactivation counted. With `opposite` the scores ascend, the most negative first. `token` and
    `matrix` name the token that was asked about.
    """

    kind: ClassVar[str] = "neighbors"

    of_sae: str | None
    of_feature_id: int | None
    by: str
    method: str = "exact"
    recall: float = 1.0
    chance: str = ""
    unit: str = "token"
    opposite: bool = False
    token: str | None = None
    matrix: str | None = None
    label: str | None = field(default=None, kw_only=True)

    @property
    def feature(self) -> str:
        """`sae/1234`, as every question takes it, `vector`, or a token and its matrix."""
        if self.token is not None:
            return f"{label(self.token)} ({self.matrix})"
        return "vector" if self.of_sae is None else f"{self.of_sae}/{self.of_feature_id}"

    def view(self) -> View:
        """The neighbors under a heading that says how they were found, and what chance gives."""
        after = f" by {self.by}" + (" in documents" if self.unit == "document" else "")
        after += f" · {counted(len(self), 'feature' if self.opposite else 'neighbor')}"
        if self.method == "ivf":
            after += f" · approximate, recall@10 {self.recall:.3f}"
        before = "opposite of " if self.opposite else "near "
        parts: list[Part] = [Heading(before, titled(self.feature, self.label), after)]
        if self.chance and len(self):
            parts.append(Heading("", "", self.chance))
        return View([parts, [self.features()]] if len(self) else [parts])

    def plot(self, ax: Axes | None = None) -> Axes:
        """A bar per neighbor, as long as its score. Raises `MissingExtraError` without matplotlib.

        Args:
            ax: Axes to draw into. Default: those of a new figure.

        Returns:
            The axes. Nothing is shown: a notebook does that by itself.
        """
        rows = list(self)
        names = plots.feature_names([feature_name(r) for r in rows], [r.top_tokens for r in rows])
        values, title = [row.score for row in rows], f"near {self.feature} by {self.by}"
        return plots.ranked(plots.axes(ax), names, values, title, self._score(rows).name)

    def features(self) -> Table:
        """Only the neighbors."""
        rows = list(self)
        return feature_table(rows, [self._score(rows), *feature_sizes(rows)])

    def short(self) -> Table:
        """The neighbors, their scores and tokens, for half a page."""
        rows = list(self)
        return feature_table(rows, [self._score(rows)], most=4)

    def _score(self, rows: Sequence[Row]) -> Column:
        score = "jaccard" if self.by == "coactivation" else "cosine"
        return score_column(score, rows, "score")


def near(
    reader: Reader,
    feature: int | str,
    k: int = 20,
    by: str = "decoder",
    *,
    exact: bool = False,
    sae: str | None = None,
    opposite: bool = False,
    unit: str = "token",
) -> Neighbors:
    """See `featuredb.Database.near`. Scored by the rule of `featuredb.store.vectors.exact`."""
    store = reader.store
    own, number = parse_feature(store.snapshot, feature)
    k = check_k(k)
    check_choice("by", by, KINDS)
    check_choice("unit", unit, UNITS)
    other = sae_named(store.snapshot, sae) if sae is not None else None
    by_firing = by == "coactivation"
    if not by_firing and not length(own, by):
        raise QueryError(NO_DIRECTIONS.format(sae=own.name))
    if opposite and by_firing:
        raise QueryError("features that fire together have no opposite: ask by decoder or encoder")
    if unit != "token" and not by_firing:
        raise QueryError(f"directions belong to no {unit}: ask by coactivation, or leave out unit")
    if by_firing and (other is not None or unit != "token"):
        nearest = firing_together(reader, f"{own.name}/{number}", k, unit, other or own)
        yardstick = Chance(None, None)
    elif by_firing or (k <= schemas.NEIGHBORS_KEPT and other is None and not opposite):
        nearest = from_graph(store, own, number, k, by)
        yardstick = _usual(store, own, by)
    else:
        among = Among(other or own, by, other is not None, opposite, exact)
        nearest = from_feature(store, own, number, k, among)
        plain = other is None and not opposite
        yardstick = _usual(store, own, by) if plain else _chance(store, among)
    return _answer(
        store, nearest, own.name, number, by, chance=str(yardstick), unit=unit, opposite=opposite
    )


def near_on_card(reader: Reader, sae: Sae, number: int, k: int, by: str) -> Neighbors:
    """As `near`. Nothing for a direction that an SAE does not have."""
    if by in KINDS[:2] and not length(sae, by):
        return _answer(reader.store, NOTHING, sae.name, number, by)
    return near(reader, f"{sae.name}/{number}", k, by)


def near_vector(
    reader: Reader,
    vector: Any,
    k: int = 20,
    by: str = "decoder",
    sae: str | None = None,
    *,
    exact: bool = False,
    opposite: bool = False,
) -> Neighbors:
    """See `featuredb.Database.near_vector`."""
    store = reader.store
    k = check_k(k)
    _check_matrix(by, "a vector")
    query = _checked(vector)
    among = Among(_place(store, len(query), by, sae), by, False, opposite, exact)
    nearest = search(store, query, k, among)
    yardstick = str(_chance(store, among))
    return _answer(store, nearest, None, None, by, chance=yardstick, opposite=opposite)


def near_token(
    store: Store,
    token: str | int,
    k: int = 20,
    by: str = "decoder",
    matrix: str = "unembedding",
    sae: str | None = None,
    *,
    exact: bool = False,
    opposite: bool = False,
    direction: TokenDirection,
) -> Neighbors:
    """See `featuredb.Database.near_token`. direction: reads the model.

    Takes a store, not a `Reader`: SQL calls it from inside a connection.
    """
    k = check_k(k)
    _check_matrix(by, "a token")
    check_choice("matrix", matrix, MATRICES)
    alone = sae_named(store.snapshot, sae) if sae is not None else None
    token_id = token_named(store, token)
    query = _checked(direction(token_id, matrix))
    place = _place(store, len(query), by, sae)
    among = Among(place, by, alone is not None, opposite, exact)
    return _answer(
        store,
        search(store, query, k, among),
        None,
        None,
        by,
        chance=str(_chance(store, among)),
        opposite=opposite,
        token=store.texts.token_texts[token_id],
        matrix=matrix,
    )


def _usual(store: Store, sae: Sae, by: str) -> Chance:
    """`chance`. Behind a URL without the median, whose sample would cost more than the answer."""
    if store.location.folder is not None:
        return chance(store, sae, by)
    return chance_among(store, sae, by) if by in KINDS[:2] else Chance(None, None)


def _chance(store: Store, among: Among) -> Chance:
    sae, by, alone, opposite, _ = among
    return chance_among(store, sae, by, alone=alone, opposite=opposite)


def _check_matrix(by: str, what: str) -> None:
    if by not in KINDS[:2]:
        raise QueryError(f"by must be decoder or encoder for {what}, not {by!r}")


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
        sae = sae_named(store.snapshot, name)
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


def _answer(
    store: Store,
    nearest: Nearest,
    of_sae: str | None,
    of_feature_id: int | None,
    by: str,
    **about: Any,
) -> Neighbors:
    asked = of_feature(of_sae, of_feature_id, len(nearest.scores))
    columns = {"of_sae": asked[0], "of_feature_id": asked[1]}
    columns |= _columns(store, nearest.names, nearest.numbers, nearest.scores)
    label = None
    if of_sae is not None and of_feature_id is not None:
        label = store.labels.preferred(store.snapshot.sae(of_sae), of_feature_id)
    return Neighbors(
        pa.table(columns),
        of_sae=of_sae,
        of_feature_id=of_feature_id,
        by=by,
        method=nearest.method,
        recall=nearest.recall,
        label=label,
        **about,
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
    for name in SUMMARY_COLUMNS:
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
FROM nearest AS n JOIN {summaries(snapshot)} AS f USING (sae, feature_id) {LABELS}
ORDER BY n.rank"""


IN_PYTHON = InPython(
    elsewhere(
        "near_token(of_token, k := 20, \"by\" := 'decoder', matrix := 'unembedding', "
        "of_sae := NULL, opposite := false)",
        table=True,
        about="features near a token's row of the model's unembedding, or embedding. Only in "
        "Database.sql and featuredb sql, which load the model",
    ),
    {
        "of_token": "VARCHAR",
        "k": "BIGINT",
        '"by"': "VARCHAR",
        "matrix": "VARCHAR",
        "of_sae": "VARCHAR",
        "opposite": "BOOLEAN",
    },
    {
        "rank": "INTEGER",
        "sae": "VARCHAR",
        "feature_id": "BIGINT",
        "score": "FLOAT",
        **TYPES,
    },
)


def near_token_in_sql(
    store: Store,
    direction: TokenDirection,
    token: str,
    k: int,
    by: str,
    matrix: str,
    sae: str | None,
    opposite: bool,
) -> Neighbors:
    """What `IN_PYTHON` asks."""
    return near_token(store, token, k, by, matrix, sae, opposite=opposite, direction=direction)


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
        IN_PYTHON.macro,
    ),
)
