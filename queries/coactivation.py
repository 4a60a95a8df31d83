"""How often two features are active together, by token and by document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Column, Heading, Table, View
from featuredb.store.names import parse_feature
from featuredb.store.positions import pack
from featuredb.store.recorded import CommonTokens, documents_of, members
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.store import Store
from queries.answers import FeatureAnswer, of_feature, titled
from queries.association import (
    COUNTS,
    MEASURES,
    SQL_COUNTS,
    SQL_MEASURES,
    SQL_P_VALUE,
    nullable,
    p_values,
    table_columns,
)
from queries.catalog.recorded import common_activations, common_contexts
from queries.connection import Reader
from queries.question import Macro, Question


@dataclass(frozen=True, repr=False)
class Coactivation(FeatureAnswer):
    """How often two features are active together: one row for tokens, one for documents.

    A, `feature`, and B, `other`, are counted over the n tokens that their SAEs recorded both, and
    over the n documents with at least one such token.

    Columns: sae string, feature_id i64 (A), other_sae string, other_id i64 (B), unit string
    (``token``, ``document``), n i64, both i64, a_only i64, b_only i64, neither i64, and f64
    p_b_given_a, p_a_given_b, jaccard, npmi, phi, g2 (`queries.association.measures`, null where
    undefined), p. p is the chance of such a g2 where the two are independent. It is null for
    tokens, since those of one document are not drawn independently.
    """

    kind: ClassVar[str] = "coactivation"

    other_sae: str
    other_id: int
    other_label: str | None = field(default=None, kw_only=True)

    @property
    def other(self) -> str:
        """B, as `feature` is A."""
        return f"{self.other_sae}/{self.other_id}"

    def view(self) -> View:
        """A column for tokens, one for documents."""
        other = titled(self.other, self.other_label)
        heading = Heading("", f"A {self.titled} · B {other}", " · together")
        return View([[heading], [self.counts()]])

    def counts(self) -> Table:
        """Only the counts and measures, for a comparison."""
        rows = list(self)
        names = ("n", *COUNTS, *MEASURES, "p")
        named = [(_SPELLED.get(name, name), name) for name in names]
        columns = [Column("", [shown for shown, _ in named])]
        for row in rows:
            values = [row[name] for _, name in named]
            cells = [(numbers.count if isinstance(v, int) else numbers.number)(v) for v in values]
            columns.append(Column(f"{row.unit}s", cells, right=True))
        return Table(columns)


_SPELLED = {
    "n": "in all",
    "a_only": "A only",
    "b_only": "B only",
    "p_b_given_a": "P(B|A)",
    "p_a_given_b": "P(A|B)",
    "npmi": "NPMI",
    "g2": "G²",
}


class Fired(NamedTuple):
    """Where a feature is active: keys int64 [n] ascending, activation float32 [n] if asked for."""

    keys: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]


def fired(
    store: Store, sae: Sae, feature: int, common: CommonTokens, *, with_activations: bool = False
) -> Fired:
    """The common tokens on which a feature of one of the two SAEs is active."""
    bits = store.snapshot.position_bits
    keys, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for segment in store.by_feature(sae):
        if segment.count(feature):
            if with_activations:
                positions, activation = segment.feature(feature)
                values.append(activation.astype(np.float32))
            else:
                positions = segment.positions(feature)
            keys.append(positions.astype(np.int64) + pack(segment.segment.first_context, 0, bits))
    found = Fired(np.concatenate(keys), np.concatenate(values))
    if common.same:
        return found
    kept = common.kept(found.keys)
    return Fired(found.keys[kept], found.activation[kept] if with_activations else found.activation)


def coactivation(reader: Reader, feature: int | str, other: int | str) -> Coactivation:
    """See `featuredb.Database.coactivation`."""
    store = reader.store
    one, two = (parse_feature(store.snapshot, name) for name in (feature, other))
    common = CommonTokens(store, one[0], two[0])
    keys = fired(store, *one, common).keys, fired(store, *two, common).keys
    return together(store, one, two, common, keys)


def together(
    store: Store,
    one: tuple[Sae, int],
    other: tuple[Sae, int],
    common: CommonTokens,
    keys: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
) -> Coactivation:
    """The answer for two features, from where they are active: see `fired`."""
    pairs = [keys, (documents_of(store, keys[0]), documents_of(store, keys[1]))]
    both = np.array([np.count_nonzero(members(*pair)) for pair in pairs], np.int64)
    a, b = (np.array([len(pair[i]) for pair in pairs], np.int64) for i in (0, 1))
    n = np.array([common.tokens, common.documents], np.int64)
    columns = table_columns(both, a, b, n)
    p = p_values(columns["g2"].to_numpy(zero_copy_only=False))
    p[0] = np.nan
    names = (*of_feature(one[0].name, one[1], 2), *of_feature(other[0].name, other[1], 2))
    named: dict[str, Any] = {
        **dict(zip(("sae", "feature_id", "other_sae", "other_id"), names, strict=True)),
        "unit": pa.array(["token", "document"], pa.string()),
        "n": pa.array(n, pa.int64()),
    }
    return Coactivation(
        pa.table(named | columns | {"p": nullable(p)}),
        sae=one[0].name,
        feature_id=one[1],
        other_sae=other[0].name,
        other_id=other[1],
        label=store.labels.preferred(*one),
        other_label=store.labels.preferred(*other),
    )


def pair_ctes(snapshot: Snapshot) -> str:
    """CTEs of a macro of two features, `feature` and `other`.

    common: see `common_contexts`. a, b: the activations of each at common tokens. measured: unit,
    n and `COUNTS` and `MEASURES`, for ``'token'`` and ``'document'``.
    """
    return f"""{common_contexts(snapshot, "featuredb_sae(feature)", "featuredb_sae(other)")},
a AS ({common_activations(snapshot, "feature")}),
b AS ({common_activations(snapshot, "other")}),
counted AS (
    SELECT 'token' AS unit, (SELECT sum(n) FROM common) AS n,
        (SELECT count(*) FROM a SEMI JOIN b USING (context_id, token_index)) AS ab,
        (SELECT count(*) FROM a) AS a, (SELECT count(*) FROM b) AS b
    UNION ALL
    SELECT 'document', (SELECT count(DISTINCT document_id) FROM common),
        (SELECT count(DISTINCT document_id) FROM a SEMI JOIN b USING (document_id)),
        (SELECT count(DISTINCT document_id) FROM a), (SELECT count(DISTINCT document_id) FROM b)
),
exact AS (
    SELECT unit, CAST(coalesce(n, 0) AS DOUBLE) AS n, CAST(ab AS DOUBLE) AS ab,
        CAST(a AS DOUBLE) AS a, CAST(b AS DOUBLE) AS b
    FROM counted
),
measured AS (
    SELECT unit, CAST(n AS BIGINT) AS n, {SQL_COUNTS}, {SQL_MEASURES},
        CASE WHEN unit = 'document' THEN featuredb_p_value(g2) END AS p
    FROM exact
)"""


SQL_PAIR = """featuredb_sae(feature) AS sae,
    CAST(featuredb_number(feature) AS BIGINT) AS feature_id, featuredb_sae(other) AS other_sae,
    CAST(featuredb_number(other) AS BIGINT) AS other_id"""
"""The names of the two features of such a macro."""


def _sql(snapshot: Snapshot) -> str:
    return f"""
WITH {pair_ctes(snapshot)}
SELECT {SQL_PAIR}, unit, n, {", ".join(f'"{name}"' for name in (*COUNTS, *MEASURES))}, p
FROM measured ORDER BY unit DESC"""


QUESTION = Question(
    "coactivation",
    Coactivation,
    "coactive",
    (
        Macro("featuredb_p_value(g2)", SQL_P_VALUE, table=False),
        Macro(
            "coactivation(feature, other)",
            _sql,
            about="how often two features, of any SAEs, fire together: a row for tokens, one for "
            "documents",
        ),
    ),
)
