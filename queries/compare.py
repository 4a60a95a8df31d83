"""Two features side by side: directions, overlap, the tokens and contexts of each and of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.characters import label
from featuredb.render.view import Column, Facts, Group, Heading, Part, Table, TokenColumn, View
from featuredb.store.names import parse_feature
from featuredb.store.recorded import CommonTokens, members, token_ids_at
from featuredb.store.snapshot import Snapshot
from featuredb.store.statistics import SUMMARY_COLUMNS
from featuredb.store.store import Store
from queries.answers import FeatureAnswer, Row, of_feature
from queries.arguments import check_choice, check_k
from queries.association import COUNTS, MEASURES
from queries.catalog.summaries import summaries
from queries.coactivation import SQL_PAIR, Coactivation, fired, pair_ctes, together
from queries.connection import Reader
from queries.directions import chance, cosine
from queries.find import Matches, find
from queries.in_python import InPython, elsewhere
from queries.question import Macro, Question

_TOKENS = 20
_TOKENS_SHOWN = 8
_SUMMARY = SUMMARY_COLUMNS
_COUNTED = pa.list_(
    pa.struct(
        [
            ("token", pa.string()),
            ("both", pa.int64()),
            ("a_only", pa.int64()),
            ("b_only", pa.int64()),
        ]
    )
)


@dataclass(frozen=True, repr=False)
class Comparison(FeatureAnswer):
    """Two features, A and B: one row, and some contexts of both, of A only and of B only.

    Columns: sae string, feature_id i64 (A), other_sae string, other_id i64 (B); decoder_cosine f32,
    encoder_cosine f32 (null where the directions have not one width); correlation f64 (Pearson's,
    of their activations on the tokens where both fire, null below three of them or where one is
    constant); token_n, token_both, … and document_n, document_both, …: what `coactivation` has,
    which is under that name too; both_tokens, a_tokens, b_tokens list<struct<token, both, a_only,
    b_only>>: the tokens on which both, only A, only B fire most often, with how often each of the
    three happens, at most 20, ties by token id; a_density, a_max_activation, a_top_tokens,
    a_promoted_tokens and the same of B.

    in_both: contexts where both fire on one token. in_a, in_b: contexts where the other never
    fires. Each the strongest first, relative to the features' maxima.
    """

    kind: ClassVar[str] = "comparison"

    other_sae: str
    other_id: int
    nearest: str
    coactivation: Coactivation
    in_both: Matches
    in_a: Matches
    in_b: Matches

    @property
    def other(self) -> str:
        """B, as `feature` is A."""
        return f"{self.other_sae}/{self.other_id}"

    def view(self) -> View:
        """Both features, how they relate, then tokens and contexts of each kind."""
        row = self[0]
        tokens: list[list[Part]] = [
            [_tokens(name, row[column], kind)]
            for name, column, kind in (
                ("both fire on", "both_tokens", "both"),
                ("only A on", "a_tokens", "a_only"),
                ("only B on", "b_tokens", "b_only"),
            )
        ]
        sections: list[list[Part]] = [
            [Heading("compare ", f"A {self.feature} · B {self.other}"), self._pair(row)],
            [Facts(_relation(row, self.nearest))],
            [self.coactivation.counts()],
            [Group(tokens)],
        ]
        for title, matches in (
            ("both on one token", self.in_both),
            ("A without B", self.in_a),
            ("B without A", self.in_b),
        ):
            count = numbers.plural(matches.total, "context") if matches.total else "no context"
            heading = Heading(title, "", f" · {count}")
            sections.append([heading, *([matches.passages()] if len(matches) else [])])
        return View(sections)

    def _pair(self, row: Row) -> Table:
        return Table(
            [
                Column("", ["A", "B"], style="bold"),
                Column("feature", [self.feature, self.other], features=True),
                Column("density", [numbers.density(row[f"{x}_density"]) for x in "ab"], right=True),
                Column(
                    "max", numbers.aligned([row[f"{x}_max_activation"] for x in "ab"]), right=True
                ),
                TokenColumn(
                    "fires on",
                    [row[f"{x}_top_tokens"] or [] for x in "ab"],
                    titles=[row[f"{x}_label"] for x in "ab"],
                ),
            ]
        )


def _relation(row: Row, nearest: str) -> dict[str, Any]:
    after = f" · {nearest}" if nearest else ""
    facts = {"decoder cosine": f"{_number(row.decoder_cosine)}{after}"}
    facts["encoder cosine"] = _number(row.encoder_cosine)
    facts["correlation"] = f"{_number(row.correlation)} of activations where both fire"
    return facts


def _number(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{value:.3f}"


def _tokens(name: str, entries: Sequence[dict[str, Any]] | None, kind: str) -> Table:
    """Tokens of one kind with how often it happens, of how often either fires there."""
    entries = entries or []
    if not entries:
        return Table([Column(name, ["none"], style="dim")])
    shown = entries[:_TOKENS_SHOWN]
    of = [entry["both"] + entry["a_only"] + entry["b_only"] for entry in shown]
    return Table(
        [
            Column(name, [label(entry["token"]) for entry in shown], tokens=True),
            Column("count", [numbers.count(entry[kind]) for entry in shown], right=True),
            Column("of", [numbers.count(n) for n in of], right=True, style="dim"),
        ],
        more=len(entries) - len(shown),
    )


def compare(reader: Reader, feature: int | str, other: int | str, k: int = 3) -> Comparison:
    """See `featuredb.Database.compare`."""
    store = reader.store
    k = check_k(k)
    one, two = (parse_feature(store.snapshot, name) for name in (feature, other))
    common = CommonTokens(store, one[0], two[0])
    a, b = (fired(store, *each, common, with_activations=True) for each in (one, two))
    pair = together(store, one, two, common, (a.keys, b.keys))
    names = [f"{sae.name}/{number}" for sae, number in (one, two)]
    asked = (*of_feature(one[0].name, one[1], 1), *of_feature(two[0].name, two[1], 1))
    columns: dict[str, Any] = dict(
        zip(("sae", "feature_id", "other_sae", "other_id"), asked, strict=True)
    )
    for by in ("decoder", "encoder"):
        columns[f"{by}_cosine"] = pa.array([cosine(store, one, two, by)], pa.float32())
    in_a, in_b = members(a.keys, b.keys), members(b.keys, a.keys)
    correlation = _correlation(a.activation[in_a], b.activation[in_b])
    columns["correlation"] = pa.array([correlation], pa.float64())
    for i, row in enumerate(("token", "document")):
        for name in ("n", *COUNTS, *MEASURES):
            columns[f"{row}_{name}"] = pair.table.column(name).slice(i, 1)
    columns["document_p"] = pair.table.column("p").slice(1, 1)
    counts = _by_token(store, a.keys, b.keys, in_a, in_b)
    for kind in range(3):
        columns[("both_tokens", "a_tokens", "b_tokens")[kind]] = _most(store, counts, kind)
    for letter, (sae, number) in zip("ab", (one, two), strict=True):
        about = store.features.summaries([store.features.row(sae, number)])
        for name in _SUMMARY:
            columns[f"{letter}_{name}"] = about.column(name)
    contexts = [
        find(reader, every=names, unit="context", within=0, k=k),
        find(reader, every=names[:1], none=names[1:], unit="context", k=k),
        find(reader, every=names[1:], none=names[:1], unit="context", k=k),
    ]
    return Comparison(
        pa.table(columns),
        sae=one[0].name,
        feature_id=one[1],
        label=store.labels.preferred(*one),
        other_sae=two[0].name,
        other_id=two[1],
        nearest=str(chance(store, one[0], "decoder")),
        coactivation=pair,
        in_both=contexts[0],
        in_a=contexts[1],
        in_b=contexts[2],
    )


def _correlation(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float | None:
    """Pearson's, in float64."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x.astype(np.float64), y.astype(np.float64))[0, 1])


def _by_token(
    store: Store,
    a: npt.NDArray[np.int64],
    b: npt.NDArray[np.int64],
    in_a: npt.NDArray[np.bool_],
    in_b: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """How often both, only A and only B fire on each token of the vocabulary, int64 [3, V].

    a, b: keys. in_a, in_b: which of them the other has.
    """
    size = store.snapshot.model.vocab_size
    kinds = (a[in_a], a[~in_a], b[~in_b])
    return np.array([np.bincount(token_ids_at(store, keys), minlength=size) for keys in kinds])


def _most(store: Store, counts: npt.NDArray[np.int64], kind: int) -> pa.Array:
    """One list: the tokens of the largest count of one kind, ties by token id."""
    found = np.flatnonzero(counts[kind])
    best = found[np.argsort(-counts[kind][found], kind="stable")[:_TOKENS]]
    texts = store.texts.read(best.tolist())
    rows = [
        {"token": text, "both": int(both), "a_only": int(a), "b_only": int(b)}
        for text, (both, a, b) in zip(texts, counts[:, best].T, strict=True)
    ]
    return pa.array([rows], _COUNTED)


def _sql(snapshot: Snapshot) -> str:
    kinds = {"both_tokens": '"both"', "a_tokens": "a_only", "b_tokens": "b_only"}
    lists = ", ".join(
        f"coalesce(list({{'token': text, 'both': \"both\", 'a_only': a_only, 'b_only': b_only}} "
        f"ORDER BY {kind} DESC, token_id) FILTER ({kind} > 0), [])[1:{_TOKENS}] AS {column}"
        for column, kind in kinds.items()
    )
    measures = ", ".join(
        f'p{i}."{name}" AS {unit}_{name}'
        for i, unit in enumerate(("token", "document"))
        for name in ("n", *COUNTS, *MEASURES)
    )
    labeled = "(SELECT text FROM labels WHERE preferred AND sae = n.{}sae AND feature_id = n.{}id)"
    label = {"a": labeled.format("", "feature_"), "b": labeled.format("other_", "other_")}
    about = ", ".join(
        f"{label[x] if name == 'label' else f'f{x}.{name}'} AS {x}_{name}"
        for x in "ab"
        for name in _SUMMARY
    )
    of = summaries(snapshot)
    same = "min({0}) = max({0})"
    return f"""
WITH {pair_ctes(snapshot)},
joined AS (
    SELECT context_id, token_index, CAST(a.activation AS DOUBLE) AS x,
        CAST(b.activation AS DOUBLE) AS y
    FROM a FULL JOIN b USING (context_id, token_index)
),
related AS (
    SELECT CASE WHEN count(*) < 3 OR {same.format("x")} OR {same.format("y")} THEN NULL
        ELSE corr(x, y) END AS correlation
    FROM joined WHERE x IS NOT NULL AND y IS NOT NULL
),
by_token AS (
    SELECT token_id, count(*) FILTER (x IS NOT NULL AND y IS NOT NULL) AS "both",
        count(*) FILTER (y IS NULL) AS a_only, count(*) FILTER (x IS NULL) AS b_only
    FROM (
        SELECT c.token_ids[j.token_index + 1] AS token_id, j.x, j.y
        FROM joined AS j JOIN common AS c USING (context_id)
    ) GROUP BY token_id
),
fired AS (SELECT {lists} FROM by_token JOIN vocabulary USING (token_id))
SELECT n.*, r.correlation, {measures}, p1.p AS document_p, t.both_tokens, t.a_tokens, t.b_tokens,
    {about}
FROM (SELECT {SQL_PAIR}) AS n, measured AS p0, measured AS p1, related AS r, fired AS t,
    {of} AS fa, {of} AS fb
WHERE p0.unit = 'token' AND p1.unit = 'document'
    AND fa.sae = n.sae AND fa.feature_id = n.feature_id
    AND fb.sae = n.other_sae AND fb.feature_id = n.other_id"""


IN_PYTHON = InPython(
    elsewhere(
        "cosine(feature, other, \"by\" := 'decoder')",
        table=False,
        about="of the directions of two features. Only in Database.sql and featuredb sql: DuckDB "
        "cannot read directions",
    ),
    {"feature": "VARCHAR", "other": "VARCHAR", '"by"': "VARCHAR"},
    "FLOAT",
)


def cosine_in_sql(store: Store, feature: str, other: str, by: str) -> float | None:
    """What `IN_PYTHON` asks."""
    check_choice("by", by, ("decoder", "encoder"))
    one, two = (parse_feature(store.snapshot, name) for name in (feature, other))
    return cosine(store, one, two, by)


QUESTION = Question(
    "compare",
    Comparison,
    "compare",
    (
        IN_PYTHON.macro,
        Macro(
            "compare(feature, other)",
            _sql,
            about="two features side by side, of any SAEs: one row of overlap, correlation and "
            "tokens of both and of each. For cosines ask cosine",
        ),
    ),
)
