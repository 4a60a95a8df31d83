"""Features that a phrase is about: what fires on it, and what its contexts show.

**Firing.** The phrase is read within a sentence (`SENTENCE`), and only its own tokens count. At the
beginning of a context, where features fire that fire nowhere else, half as many of the right ones
are found. Features come by specificity (`queries.specificity`) of their largest activation there.

**Evidence.** See `queries.evidence`.

**Both.** Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) of the first `DEPTH` of
each: the sum of 1 / (`FUSION` + rank), ranks from 1. Order: score descending, ties by SAE in the
snapshot's order, then feature id. docs/benchmarks.md has the recall of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render.characters import label
from featuredb.render.view import Column, Heading, View
from queries.answers import Answer, Row
from queries.arguments import check_choice, check_k, check_text
from queries.catalog import literals
from queries.connection import Reader
from queries.evidence import check_expression, found
from queries.fires import Encode
from queries.question import Macro, Question
from queries.show import counted, feature_sizes, feature_table
from queries.specificity import Active, most_specific
from queries.sql import duckdb_errors

WAYS = ("both", "firing", "evidence")
SENTENCE = ("This text is about", ".")
DEPTH = 50
FUSION = 10

_SHAPE = {
    "rank": pa.int32(),
    "sae": pa.string(),
    "feature_id": pa.int64(),
    "score": pa.float32(),
    "specificity": pa.float32(),
    "activation": pa.float32(),
    "token": pa.string(),
    "hits": pa.int64(),
    "top_documents": pa.int64(),
    "matching_documents": pa.int64(),
    "lift": pa.float64(),
    "q": pa.float64(),
    "matched": pa.string(),
    "density": pa.float64(),
    "max_activation": pa.float32(),
    "top_tokens": pa.list_(pa.field("element", pa.string())),
    "promoted_tokens": pa.list_(pa.field("element", pa.string())),
    "label": pa.string(),
}


@dataclass(frozen=True, repr=False)
class About(Answer):
    """Features that `text` is about, by score descending.

    Columns: rank i32, sae string, feature_id i64, score f32, then null where the feature does not
    fire: specificity f32, activation f32 (its largest on the phrase), token string (where); null
    where there is no evidence: hits, top_documents and matching_documents i64, lift f64, q f64,
    matched string (`queries.evidence`); then density f64, max_activation f32, top_tokens
    list<string>, promoted_tokens list<string>, label string.
    """

    kind: ClassVar[str] = "about"

    text: str
    by: str

    def view(self) -> View:
        """The features, with what speaks for each."""
        rows = list(self)
        head = [Heading("about ", self.text, f" · {counted(len(self), 'feature')}")]
        matched = next((row for row in rows if row.matched is not None), None)
        if matched is not None:
            head.append(found(matched))
        if not rows:
            return View([head])
        columns = []
        if self.by != "evidence":
            fires = ["" if r.token is None else f"{r.specificity:.2f}" for r in rows]
            columns.append(Column("specific", fires, right=True))
            on = ["" if r.token is None else label(r.token) for r in rows]
            columns.append(Column("on", on))
        if self.by != "firing":
            shares = ["" if r.hits is None else f"{r.hits} of {r.top_documents}" for r in rows]
            columns.append(Column("top documents", shares, right=True))
        return View([head, [feature_table(rows, [*columns, feature_sizes(rows)[0]])]])


def about(reader: Reader, text: str, k: int, by: str, encode: Encode) -> About:
    """See `featuredb.Database.about`."""
    k = check_k(k)
    check_text(text, "a phrase")
    check_choice("by", by, WAYS)
    if by != "firing":
        check_expression(reader, text)
    if not text.strip():
        raise QueryError("the phrase is empty: say what the features should be about")
    depth = DEPTH if by == "both" else k
    ranked = []
    if by != "evidence":
        ranked.append(list(_firing(reader, text.strip(), depth, encode)))
    if by != "firing":
        with duckdb_errors(reader.location):
            relation = reader.cursor().sql("FROM evidence(?, k := ?)", params=[text, depth])
            ranked.append(list(Answer(relation.to_arrow_table())))
    return About(pa.Table.from_pylist(_fused(reader, ranked, k), pa.schema(_SHAPE)), text, by)


def _firing(reader: Reader, text: str, k: int, encode: Encode) -> Answer:
    """The features most specific to the phrase's own tokens within the sentence."""
    before, after = SENTENCE
    ((active, tokens),) = encode([f"{before} {text}{after}"])
    first = int(np.searchsorted(np.cumsum([len(token) for token in tokens]), len(before)) + 1)
    end = len(tokens) - (tokens[-1] == after)
    kept = []
    for each in active:
        inside = (each.token_index >= first) & (each.token_index < end)
        kept.append(
            Active(
                each.sae,
                each.token_index[inside],
                each.feature_id[inside],
                each.activation[inside],
            )
        )
    return Answer(most_specific(reader.store, kept, tokens, k))


def _fused(reader: Reader, ranked: Sequence[Sequence[Row]], k: int) -> list[dict[str, Any]]:
    """Rows of the answer, those of one feature joined."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for rows in ranked:
        for row in rows:
            shown = {name: row[name] for name in row.keys() if name in _SHAPE}  # noqa: SIM118
            entry = joined.setdefault((row.sae, row.feature_id), {"score": 0.0})
            entry |= {**shown, "score": entry["score"] + 1 / (FUSION + row.rank)}
    order = reader.store.sae_order
    best = sorted(joined.values(), key=lambda e: (-e["score"], order[e["sae"]], e["feature_id"]))[
        :k
    ]
    return [{**entry, "rank": rank} for rank, entry in enumerate(best, 1)]


_SQL = f"""
SELECT rank, sae, feature_id, CAST(1 / ({FUSION} + rank) AS FLOAT) AS score,
    NULL::FLOAT AS specificity, NULL::FLOAT AS activation, NULL::VARCHAR AS token,
    hits, top_documents, matching_documents, lift, q, matched,
    density, max_activation, top_tokens, promoted_tokens, label
FROM query(concat('FROM evidence(', {literals.quoted("phrase")}, ', k := ', featuredb_k(k), ')'))
ORDER BY rank"""
"""As by evidence alone: SQL has no model. `evidence` is bound late, since it is made later."""

QUESTION = Question(
    "about",
    About,
    "about",
    (
        Macro(
            "about(phrase, k := 20)",
            _SQL,
            about="features that a phrase is about, by evidence alone, which needs no model",
        ),
    ),
)
