"""Top contexts of a feature: where it is most active, with the tokens around and the document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Heading, Passages, View
from featuredb.store import schemas
from featuredb.store.files.parquet import list_values
from featuredb.store.names import parse_feature
from featuredb.store.snapshot import File, Sae, Snapshot
from featuredb.store.store import Store
from queries.activations import FeatureContexts, feature_contexts
from queries.answers import FOR_DISPLAY, FeatureAnswer, of_feature
from queries.arguments import check_bounds, check_k, check_offset, check_window
from queries.catalog import literals
from queries.catalog.documents import metadata
from queries.catalog.naming import first_rows
from queries.catalog.windows import windows
from queries.connection import Reader
from queries.filters import OF_DOCUMENTS, contexts_where, names_tokens, spelled, tokens_where
from queries.paging import Paging
from queries.peaks import Peak, passages, peak_columns
from queries.question import Macro, Question


@dataclass(frozen=True, repr=False)
class TopContexts(FeatureAnswer):
    """Contexts of a feature, by maximum activation descending, ties by context id.

    Columns: sae string, feature_id i64, rank i32, context_id i64, document_id i64, activation f32
    (the context's maximum), token_index i32 (the first token reaching it), token string,
    window_start i32 (context index of `tokens[0]`), tokens list<string>, activations list<f32> (0
    where not active), then the document's source and metadata. `max_activation` is the feature's
    over the whole store: the scale tokens are shaded on, so that shades mean the same in every
    answer.
    """

    kind: ClassVar[str] = "top_contexts"

    max_activation: float
    special: frozenset[str] = field(default=frozenset(), kw_only=True, metadata=FOR_DISPLAY)

    def view(self) -> View:
        """The contexts under `feature sae/1234 · 20 contexts · maximum 14.23 in the store`."""
        count = numbers.plural(len(self), "context") if len(self) else "active in no such context"
        maximum = numbers.number(self.max_activation)
        heading = Heading("feature ", self.titled, f" · {count} · maximum {maximum} in the store")
        return View([[heading], [self.passages()]] if len(self) else [[heading]])

    def passages(self) -> Passages:
        """Only the contexts, for a card."""
        rows = list(self)
        scale = abs(self.max_activation) or max((abs(r.activation) for r in rows), default=0.0)
        return passages(rows, scale, self.special)


_KEPT_ROWS = schemas.EXAMPLES_TOP


def top_contexts(
    reader: Reader,
    feature: int | str,
    k: int = 20,
    window: int = 16,
    where: str | None = None,
    min_activation: float | None = None,
    max_activation: float | None = None,
    *,
    offset: int = 0,
    per_document: bool = False,
    distinct: bool = False,
) -> TopContexts:
    """See `featuredb.Database.top_contexts`."""
    store = reader.store
    sae, number = parse_feature(store.snapshot, feature)
    page = Paging(check_k(k), check_offset(offset), per_document, distinct)
    window = check_window(window)
    check_bounds(min_activation, max_activation)
    filtered = where is not None or min_activation is not None or max_activation is not None
    peaks = None
    if page.end <= schemas.EXAMPLES_TOP and not filtered:
        first = _from_examples(store, sae, number, page.end if page.repeats else _KEPT_ROWS)
        maximum = first[0].activation if first else 0.0
        places = page.chosen(store.texts, [peak.context_id for peak in first])
        # Enough of them, or the feature has no others.
        if page.repeats or len(places) == page.end or len(first) < _KEPT_ROWS:
            peaks = [first[place] for place in places[page.offset :]]
    if peaks is None:
        contexts = feature_contexts(store, sae, number)
        peaks = _from_all(reader, contexts, page, where, min_activation, max_activation)
        maximum = float(contexts.peak.max()) if len(contexts.peak) else 0.0
    names = of_feature(sae.name, number, len(peaks))
    columns = {"sae": names[0], "feature_id": names[1]}
    columns |= peak_columns(store, peaks, window, page.offset)
    return TopContexts(
        pa.table(columns),
        sae=sae.name,
        feature_id=number,
        max_activation=maximum,
        special=store.texts.special,
        label=store.labels.preferred(sae, number),
    )


def _from_examples(store: Store, sae: Sae, feature: int, k: int) -> list[Peak]:
    """From the examples kept for every feature: its first rows are its top contexts, by rank."""
    path, directory = store.examples(sae)
    start, stop = int(directory[feature]), int(directory[feature + 1])
    if start == stop:
        return []
    columns = schemas.examples("float32").names[1:]
    table = store.files.rows(path, start, min(stop, start + k), columns).combine_chunks()
    kind, _, context, token, activation, indexes, values = (
        column.chunk(0) for column in table.columns
    )
    count = int(np.count_nonzero(kind.to_numpy() == 0))
    offsets = indexes.offsets.to_numpy() - indexes.offsets[0].as_py()
    flat_indexes = list_values(indexes).to_numpy()
    flat_values = list_values(values).to_numpy().astype(np.float32, copy=False)
    return [
        Peak(c, a, t, flat_indexes[i:j], flat_values[i:j])
        for c, a, t, i, j in zip(
            context.to_pylist()[:count],
            activation.to_numpy().tolist(),
            token.to_pylist(),
            offsets[:-1],
            offsets[1:],
            strict=False,
        )
    ]


def _from_all(
    reader: Reader,
    contexts: FeatureContexts,
    page: Paging,
    where: str | None,
    low: float | None,
    high: float | None,
) -> list[Peak]:
    """From all of the feature's contexts."""
    chosen = np.ones(len(contexts.context_id), bool)
    counted = contexts
    if where is not None:
        # Asked even when no context is left, so that a bad condition always fails.
        if names_tokens(reader, where):
            counted = _counted(reader, contexts, where)
            chosen &= counted.peak > -np.inf
        else:
            chosen &= np.isin(contexts.context_id, contexts_where(reader, where))
    if low is not None:
        chosen &= counted.peak >= low
    if high is not None:
        chosen &= counted.peak <= high
    rows = np.flatnonzero(chosen)
    wanted = page.end
    while True:
        best = _best(rows, counted.peak, wanted)
        places = page.chosen(reader.store.texts, contexts.context_id[best].tolist())
        if len(places) == page.end or wanted >= len(rows):
            return [peak_of(contexts, counted, int(best[place])) for place in places[page.offset :]]
        # Some were shown before: look further.
        wanted *= 4


def _counted(reader: Reader, contexts: FeatureContexts, where: str) -> FeatureContexts:
    """The contexts with the activations and maxima of the tokens that `where` chooses.

    All others are -inf.
    """
    named = (contexts.context_id, contexts.offsets, contexts.token_index)
    mask = tokens_where(reader, where, *named)
    activation = np.where(mask, contexts.activation, np.float32(-np.inf))
    peak = contexts.peak
    if len(peak):
        peak = np.maximum.reduceat(activation, contexts.offsets[:-1])
    return contexts._replace(activation=activation, peak=peak)


def _best(
    rows: npt.NDArray[np.int64], peak: npt.NDArray[np.float32], k: int
) -> npt.NDArray[np.int64]:
    """The first k of `rows`, which ascend, by peak descending."""
    if len(rows) > 4 * k:
        # Only rows at or above the k-th highest peak need sorting.
        floor = np.partition(peak[rows], len(rows) - k)[len(rows) - k]
        rows = rows[peak[rows] >= floor]
    # Rows ascend by context id, so a stable sort by activation leaves ties in that order.
    return rows[np.argsort(-peak[rows], kind="stable")[:k]]


def peak_of(contexts: FeatureContexts, counted: FeatureContexts, i: int) -> Peak:
    """All active tokens of context i, and the maximum of those that count."""
    tokens, activations = contexts.tokens(i)
    # Of several tokens that reach the maximum, argmax names the first.
    first = int(tokens[np.argmax(counted.tokens(i)[1])])
    return Peak(int(contexts.context_id[i]), float(counted.peak[i]), first, tokens, activations)


_KEPT = f"""
    SELECT of_sae AS sae, CAST(id AS BIGINT) AS feature_id, rank, context_id, activation,
        CAST(token_index AS INTEGER) AS token_index,
        CAST(token_indexes AS INTEGER[]) AS token_indexes, activations
    FROM {literals.below_root("path")}
    WHERE feature_id = id AND kind = 0 AND rank > skip AND rank <= k"""

_COMPUTED = """
    SELECT * FROM (
        SELECT sae, feature_id,
            CAST(row_number() OVER (ORDER BY activation DESC, context_id) AS INTEGER) AS rank,
            context_id, activation, token_index, token_indexes, activations
        FROM featuredb_contexts_of(feature)
    ) WHERE rank > skip AND rank <= k"""

# The first context of each document, of each text, or of both: whatever else is shown, no other is.
_FIRSTS = """
    SELECT *, row_number() OVER (ORDER BY activation DESC, context_id) AS place
    FROM (
        SELECT f.*, c.document_id, c.token_ids
        FROM featuredb_contexts_of(feature) AS f JOIN contexts AS c USING (context_id)
        QUALIFY row_number() OVER (
            PARTITION BY CASE WHEN per_document THEN document_id END,
                CASE WHEN no_twice THEN token_ids END
            ORDER BY activation DESC, context_id) = 1
    )"""

_ONCE = f"""
    SELECT sae, feature_id, CAST(place AS INTEGER) AS rank, context_id, activation, token_index,
        token_indexes, activations
    FROM ({_FIRSTS}) WHERE place > skip AND place <= k"""

# Documents and texts both once: which context comes next depends on all that came before.
_BOTH_ONCE = f"""
    WITH RECURSIVE firsts AS MATERIALIZED (
        SELECT *, min(place) OVER (PARTITION BY token_ids) AS text
        FROM ({_FIRSTS.replace("per_document", "true").replace("no_twice", "true")})
    ),
    shown AS (
        SELECT 1 AS rank, place, [document_id] AS documents, [text] AS texts
        FROM firsts WHERE place = 1
        UNION ALL
        SELECT rank + 1, place, list_append(documents, document_id), list_append(texts, text)
        FROM (
            SELECT s.rank, s.documents, s.texts, f.place, f.document_id, f.text
            FROM shown AS s JOIN firsts AS f ON f.place > s.place
            WHERE s.rank < k AND NOT list_contains(s.documents, f.document_id)
                AND NOT list_contains(s.texts, f.text)
            ORDER BY f.place LIMIT 1
        )
    )
    SELECT sae, feature_id, CAST(s.rank AS INTEGER) AS rank, context_id, activation, token_index,
        token_indexes, activations
    FROM shown AS s JOIN firsts USING (place) WHERE s.rank > skip"""


# The tokens that a condition chooses count. Of the others only the activations are shown.
_CONTEXTS_WHERE = f"""
    SELECT any_value(sae) AS sae, any_value(feature_id) AS feature_id, context_id,
        max(activation) FILTER (counts) AS activation,
        arg_min(token_index, (-activation, token_index)) FILTER (counts) AS token_index,
        list(token_index ORDER BY token_index) AS token_indexes,
        list(activation ORDER BY token_index) AS activations
    FROM feature_activations(feature) LEFT JOIN (
        FROM query(concat('SELECT tokens.context_id, tokens.token_index, true AS counts FROM '
            '{OF_DOCUMENTS} JOIN featuredb_tokens_of(', {literals.FEATURE}, ') AS tokens '
            'USING (context_id) WHERE (', condition, chr(10), ')'))
    ) USING (context_id, token_index)
    GROUP BY context_id HAVING bool_or(counts)"""


def _tokens_of(snapshot: Snapshot) -> str:
    active = "(SELECT context_id, token_indexes FROM featuredb_contexts_of(feature))"
    return f"SELECT * EXCLUDE (featuredb_place) FROM ({spelled(snapshot, active, 'nth')})"


def _where(best: str) -> str:
    """The same of the tokens that a condition chooses."""
    return best.replace(
        "featuredb_contexts_of(feature)", "featuredb_contexts_where(feature, condition)"
    )


_OFFSET, _DISTINCT, _WHERE = map(literals.name, ("offset", "distinct", "where"))
"""Parameters that SQL takes for its own words unless they are quoted."""


def _choice(snapshot: Snapshot, row: str, otherwise: str, end: str, once: str = "NULL") -> str:
    """The macro that chooses: stored windows, else contexts, else all activations.

    `query` plans only the text it is given, here a call with the names already read. Planning all
    ways, each with the names spelled out, would take longer than answering. row: the feature's row
    among all features. otherwise: the macro that is called where that is null. end: how many there
    are up to the last one shown. once: the call where some are left out, null where none is.
    """
    firsts = first_rows(snapshot)
    calls: list[list[int | str]] = []
    derived = {t.sae: t for t in snapshot.derived.saes}
    for sae in snapshot.saes:
        tables = derived[sae.name]
        from_examples = _reading("kept", tables.examples, sae)
        first = firsts[sae.name]
        for w in tables.windows:
            ends = [first + w.first_feature, first + w.end_feature - 1]
            calls.append([*ends, _reading("ready", w.file, sae), from_examples])
    shape = {"first": "BIGINT", "last": "BIGINT", "ready": "VARCHAR", "kept": "VARCHAR"}
    held = literals.holding(row, literals.records(shape, calls))
    reading = (
        f"list_transform({held}, lambda r: "
        f"CASE WHEN window_size <= {schemas.WINDOW} THEN r['ready'] ELSE r['kept'] END)"
    )
    return (
        f"FROM query(concat(coalesce({once}, CASE WHEN k <= {schemas.EXAMPLES_TOP} - {_OFFSET} "
        f"THEN replace(list_first({reading}), '{literals.HERE}', featuredb_number(feature)) "
        f"ELSE concat('FROM featuredb_top_computed(', {literals.FEATURE}, ', ') END, "
        f"concat('FROM {otherwise}(', {literals.FEATURE}, ', ')), "
        f"{end}, ', ', featuredb_window(window_size), ', ', featuredb_offset({_OFFSET}), ')'))"
    )


def _once() -> str:
    """The call where a condition is given, or documents or texts are shown once, else null."""
    flags = f"{_flag('per_document')}, ', ', {_flag(_DISTINCT)}"
    chosen = f"{literals.FEATURE}, ', ', {literals.quoted(_WHERE)}"
    return (
        f"CASE WHEN per_document AND {_DISTINCT} AND {_WHERE} IS NULL "
        f"THEN concat('FROM featuredb_top_both_once(', {literals.FEATURE}, ', ') "
        f"WHEN (per_document OR {_DISTINCT}) AND {_WHERE} IS NULL "
        f"THEN concat('FROM featuredb_top_once(', {literals.FEATURE}, ', ', {flags}, ', ') "
        f"WHEN per_document AND {_DISTINCT} "
        f"THEN concat('FROM featuredb_top_both_once_where(', {chosen}, ', ') "
        f"WHEN per_document OR {_DISTINCT} "
        f"THEN concat('FROM featuredb_top_once_where(', {chosen}, ', ', {flags}, ', ') "
        f"WHEN {_WHERE} IS NOT NULL "
        f"THEN concat('FROM featuredb_top_computed_where(', {chosen}, ', ') END"
    )


def _flag(parameter: str) -> str:
    return f"CAST(CAST({parameter} AS BOOLEAN) AS VARCHAR)"


def _reading(way: str, file: File, sae: Sae) -> str:
    """The call that reads a file, up to k and the window."""
    path, name = literals.text("/" + file.path), literals.text(sae.name)
    return f"FROM featuredb_top_{way}({path}, {name}, {literals.HERE}, "


def _ready(snapshot: Snapshot) -> str:
    """From the windows: what an answer shows is there, of the widest window that is kept."""
    low = f"greatest(0, least({schemas.WINDOW}, w.token_index) - size)"
    high = f"least({schemas.WINDOW}, w.token_index) + size + 1"
    return f"""
SELECT of_sae AS sae, CAST(id AS BIGINT) AS feature_id, w.rank, w.context_id, w.document_id,
    CAST(w.activations[1 + least({schemas.WINDOW}, w.token_index)] AS FLOAT) AS activation,
    w.token_index, w.tokens[1 + least({schemas.WINDOW}, w.token_index)] AS token,
    CAST(greatest(0, w.token_index - size) AS INTEGER) AS window_start,
    w.tokens[1 + {low}:{high}] AS tokens,
    CAST(w.activations[1 + {low}:{high}] AS FLOAT[]) AS activations{metadata(snapshot, "d")}
FROM {literals.below_root("path")} AS w JOIN documents AS d USING (document_id)
WHERE w.feature_id = id AND w.rank > skip AND w.rank <= k
ORDER BY w.rank"""


QUESTION = Question(
    "top_contexts",
    TopContexts,
    "top",
    (
        Macro("featuredb_top_ready(path, of_sae, id, k, size, skip)", _ready),
        Macro(
            "featuredb_top_kept(path, of_sae, id, k, size, skip)",
            lambda s: windows(_KEPT, s),
        ),
        Macro("featuredb_top_computed(feature, k, size, skip)", lambda s: windows(_COMPUTED, s)),
        Macro(
            "featuredb_top_once(feature, per_document, no_twice, k, size, skip)",
            lambda s: windows(_ONCE, s),
        ),
        Macro("featuredb_top_both_once(feature, k, size, skip)", lambda s: windows(_BOTH_ONCE, s)),
        Macro("featuredb_tokens_of(feature)", _tokens_of),
        Macro("featuredb_contexts_where(feature, condition)", _CONTEXTS_WHERE),
        Macro(
            "featuredb_top_computed_where(feature, condition, k, size, skip)",
            lambda s: windows(_where(_COMPUTED), s),
        ),
        Macro(
            "featuredb_top_once_where(feature, condition, per_document, no_twice, k, size, skip)",
            lambda s: windows(_where(_ONCE), s),
        ),
        Macro(
            "featuredb_top_both_once_where(feature, condition, k, size, skip)",
            lambda s: windows(_where(_BOTH_ONCE), s),
        ),
        Macro(
            f"featuredb_top_named(feature, k, window_size, {_OFFSET})",
            lambda s: _choice(s, "featuredb_row(feature)", "featuredb_top_computed", "k"),
        ),
        Macro(
            f"top_contexts(feature, k := 20, window_size := 16, {_OFFSET} := 0, "
            f"per_document := false, {_DISTINCT} := false, {_WHERE} := NULL)",
            lambda s: _choice(
                s,
                "featuredb_plain_row(feature)",
                "featuredb_top_named",
                f"CAST(featuredb_k(k) AS HUGEINT) + featuredb_offset({_OFFSET})",
                _once(),
            ),
            about="the strongest contexts, with the tokens around each peak and the document's "
            'metadata. Quote "offset", "distinct" and "where", words of SQL',
        ),
    ),
)
