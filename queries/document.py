"""A whole document: its text, where each token lies in it, and a feature's activation on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError, UnknownContextError
from featuredb.render.view import Facts, Heading, Part, Passage, Passages, View
from featuredb.store.names import parse_feature
from featuredb.store.positions import pack
from featuredb.store.recorded import recorded_by
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.store import Store
from queries.answers import Answer, of_feature, titled
from queries.arguments import is_whole
from queries.catalog import literals
from queries.connection import Reader
from queries.fires import active_in_context
from queries.question import Macro, Question
from queries.token_spans import UNKNOWN, Int64, token_spans

NO_DOCUMENT = "there is no document {document}: this database has {spans}"


@dataclass(frozen=True, repr=False)
class WholeDocument(Answer):
    """A document's tokens in order, each once, without BOS.

    Columns: sae string and feature_id i64 (null unless a feature was asked for), document_id i64,
    context_id i64, token_index i32 (in the context, BOS counted), token_id i64, token string,
    char_start i64 and char_end i64 (the characters of `text` that it comes from, half-open; null
    where they are not known, see `queries.token_spans`), role string (null but in chats),
    activation f32 (0 where the feature is silent, null at sinks and wherever else its SAE recorded
    nothing). Where windows overlap a token counts in the first that has it.

    text: the document's, for a chat as its template wrote it, None for a corpus of token ids.
    metadata: its source and the corpus's own columns.
    """

    kind: ClassVar[str] = "whole_document"

    document_id: int
    text: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sae: str | None = None
    feature_id: int | None = None
    scale: float = 1.0
    label: str | None = field(default=None, kw_only=True)

    @property
    def feature(self) -> str | None:
        """`sae/1234`, if a feature was asked for."""
        return None if self.sae is None else f"{self.sae}/{self.feature_id}"

    def view(self) -> View:
        """The text, shaded where the feature is active, under what is known of the document."""
        values = self.table.column("activation").to_pylist()
        activations = [value or 0.0 for value in values]
        firing = sum(value != 0 for value in activations)
        after = f" · {len(self):,} tokens"
        if self.feature is not None:
            after += f" · {titled(self.feature, self.label)} · fires on {firing:,}"
        parts: list[Part] = [Heading("document ", str(self.document_id), after)]
        facts = {name: value for name, value in self.metadata.items() if value is not None}
        if facts:
            parts.append(Facts(facts))
        peak = int(np.argmax(np.abs(activations))) if firing else None
        passage = Passage(self.table.column("token").to_pylist(), activations, peak)
        sections: list[list[Part]] = [parts]
        if len(self):
            sections.append([Passages([passage], self.scale)])
        return View(sections)


def document(
    reader: Reader,
    document_id: int | None = None,
    feature: int | str | None = None,
    *,
    context_id: int | None = None,
) -> WholeDocument:
    """See `featuredb.Database.document`."""
    store = reader.store
    named = None if feature is None else parse_feature(store.snapshot, feature)
    number = _number(store, document_id, context_id)
    contexts = list(store.texts.document_contexts(number))
    pieces = [store.texts.token_ids(context)[skipped:] for context, skipped, _ in contexts]
    ids = np.concatenate([np.empty(0, np.int64), *pieces]).astype(np.int64)
    places = [
        (context, skipped + i)
        for (context, skipped, _), piece in zip(contexts, pieces, strict=True)
        for i in range(len(piece))
    ]
    context, index = np.array(places, np.int64).reshape(-1, 2).T
    text, starts, roles = store.texts.document_text(number)
    spans = np.full((len(ids), 2), UNKNOWN, np.int64)
    if text is not None:
        spelled = store.texts.token_bytes
        spans = token_spans(text, [[spelled[i] for i in piece] for piece in pieces], starts)
    said = (
        [
            role
            for own, (_, skipped, _) in zip(roles, contexts, strict=True)
            for role in own[skipped:]
        ]
        if roles is not None
        else [None] * len(ids)
    )
    activation = pa.nulls(len(ids), pa.float32())
    scale, label = 1.0, None
    if named is not None:
        activation = _activation(store, named, context, index)
        scale = float(np.nan_to_num(store.features.max_activation(named[0])[named[1]])) or 1.0
        label = store.labels.preferred(*named)
    sae, feature_id = (named[0].name, named[1]) if named is not None else (None, None)
    asked = of_feature(sae, feature_id, len(ids))
    table = {
        "sae": asked[0],
        "feature_id": asked[1],
        "document_id": pa.array([number] * len(ids), pa.int64()),
        "context_id": pa.array(context, pa.int64()),
        "token_index": pa.array(index, pa.int32()),
        "token_id": pa.array(ids, pa.int64()),
        "token": pa.array(store.texts.read(ids.tolist()), pa.string()),
        "char_start": pa.array(spans[:, 0], pa.int64(), mask=spans[:, 0] == UNKNOWN),
        "char_end": pa.array(spans[:, 1], pa.int64(), mask=spans[:, 1] == UNKNOWN),
        "role": pa.array(said, pa.string()),
        "activation": activation,
    }
    return WholeDocument(
        pa.table(table),
        document_id=number,
        text=text,
        metadata=store.texts.documents([number]).to_pylist()[0],
        sae=sae,
        feature_id=feature_id,
        scale=scale,
        label=label,
    )


def _number(store: Store, document_id: Any, context_id: Any) -> int:
    """The document that is meant. Raises `QueryError`."""
    if (document_id is None) == (context_id is None):
        raise QueryError("give a document's id, or context_id")
    if context_id is not None:
        if not is_whole(context_id):
            raise UnknownContextError(f"{context_id!r} is not a context: give its number")
        return store.texts.document_of(int(context_id))
    ranges = [(c.first_document, c.first_document + c.n_documents) for c in store.snapshot.corpora]
    if not is_whole(document_id) or not any(low <= document_id < high for low, high in ranges):
        spans = " and ".join(f"{low} to {high - 1}" for low, high in ranges if low < high)
        raise QueryError(NO_DOCUMENT.format(document=document_id, spans=f"documents {spans}"))
    return int(document_id)


def _activation(store: Store, named: tuple[Sae, int], context: Int64, index: Int64) -> pa.Array:
    """A feature's activation at each place, null where its SAE recorded nothing, float32."""
    sae, number = named
    bits = store.snapshot.position_bits
    keys = pack(context, index, bits)
    values = np.zeros(len(keys), np.float32)
    for each in np.unique(context).tolist():
        token, feature, activation = active_in_context(store, sae, each)
        own = pack(np.int64(each), token[feature == number], bits)
        at = np.searchsorted(keys, own)
        inside = at < len(keys)
        inside[inside] = keys[at[inside]] == own[inside]
        values[at[inside]] = activation[feature == number][inside]
    return pa.array(values, pa.float32(), mask=~recorded_by(store, sae, keys))


def _sql(snapshot: Snapshot) -> str:
    """Tokens with their characters, where their bytes joined are the text's, else without."""
    cases = []
    for corpus in snapshot.corpora:
        bos = int(corpus.bos_token_id is not None)
        overlap = 0 if corpus.stride is None else corpus.context_size - bos - corpus.stride
        last = corpus.first_document + corpus.n_documents - 1
        cases.append(
            f"WHEN document_id BETWEEN {corpus.first_document} AND {last} THEN "
            f"{bos} + CASE WHEN context_index > 0 THEN {overlap} ELSE 0 END"
        )
    skipped = f"CASE {' '.join(cases)} END" if cases else "0"
    has_roles = any(corpus.roles is not None for corpus in snapshot.corpora)
    role = "roles[i + 1]" if has_roles else "NULL::VARCHAR"
    ranges = [(c.first_document, c.first_document + c.n_documents - 1) for c in snapshot.corpora]
    known = " OR ".join(f"document BETWEEN {low} AND {high}" for low, high in ranges) or "false"
    spans = " and ".join(f"{low} to {high}" for low, high in ranges if low <= high)
    missing = literals.message(
        NO_DOCUMENT.replace("{spans}", f"documents {spans}"), document="document"
    )
    return f"""
WITH own AS (
    SELECT document_id, context_id, CAST(i AS INTEGER) AS token_index,
        CAST(token_ids[i + 1] AS BIGINT) AS token_id, {role} AS role, char_start AS context_start
    FROM (
        SELECT *, unnest(range({skipped}, n_tokens)) AS i FROM contexts
        WHERE document_id = CASE WHEN {known} THEN document ELSE error({missing}) END
    )
),
spelled AS (
    SELECT o.*, v.text AS token, hex(v.bytes) AS bytes,
        -- Bytes that begin a character.
        len(list_filter(regexp_extract_all(hex(v.bytes), '..'), lambda b: b < '80' OR b >= 'C0'))
            AS begun,
        hex(v.bytes)[1] IN ('8', '9', 'A', 'B') AS inside
    FROM own AS o JOIN vocabulary AS v USING (token_id)
),
placed AS (
    SELECT *, sum(begun) OVER (ORDER BY context_id, token_index) AS until,
        string_agg(bytes, '' ORDER BY context_id, token_index) OVER () AS joined,
        first_value(context_start) OVER (ORDER BY context_id, token_index) AS first
    FROM spelled
),
aligned AS (
    SELECT p.*, hex(encode(d.text[greatest(first, 0) + 1:])) AS rest
    FROM placed AS p LEFT JOIN documents AS d USING (document_id)
),
based AS (
    SELECT *, CASE WHEN starts_with(rest, joined) THEN greatest(first, 0)
        WHEN starts_with('20' || rest, joined) THEN greatest(first, 0) - 1 END AS base
    FROM aligned
)
SELECT document_id, context_id, token_index, token_id, token,
    CAST(greatest(base + until - begun - CAST(inside AS INTEGER), least_start) AS BIGINT)
        AS char_start,
    CAST(greatest(base + until, least_start) AS BIGINT) AS char_end, role
FROM (SELECT *, CASE WHEN base IS NOT NULL THEN greatest(first, 0) END AS least_start FROM based)
ORDER BY context_id, token_index"""


QUESTION = Question(
    "document",
    WholeDocument,
    "document",
    (
        Macro(
            "document(document)",
            _sql,
            about="every token of a document, without BOS, with its characters [char_start, "
            "char_end) in the text, and its role in chats",
        ),
    ),
)
