"""Table macros over one feature's activations: all of them, by context, and the top contexts."""

from __future__ import annotations

from featuredb.store import names, schemas
from featuredb.store.snapshot import File, Snapshot
from queries.catalog import literals
from queries.catalog.literals import name
from queries.catalog.naming import first_rows

_NAME = literals.quoted("CAST(feature AS VARCHAR)")
_HERE = "{id}"
"""Where the texts that a macro chooses from have the feature's number."""


def top_contexts_macros(snapshot: Snapshot) -> list[str]:
    """`feature_activations`, `feature_contexts` and `top_contexts`.

    Each opens only the files that hold its feature, chosen while the statement is planned from
    the ranges written into the macro.
    """
    return [
        *_feature_activations(snapshot),
        "CREATE MACRO featuredb_contexts_of(feature) AS TABLE "
        "SELECT context_id, max(activation) AS activation, "
        "arg_min(token_index, (-activation, token_index)) AS token_index, "
        "list(token_index ORDER BY token_index) AS token_indexes, "
        "list(activation ORDER BY token_index) AS activations "
        "FROM feature_activations(feature) GROUP BY context_id",
        f"CREATE MACRO feature_contexts(feature) AS TABLE {_feature_contexts(snapshot)}",
        f"CREATE MACRO featuredb_top_ready(path, id, k, size) AS TABLE {_ready(snapshot)}",
        f"CREATE MACRO featuredb_top_kept(path, id, k, size) AS TABLE {_windows(_KEPT, snapshot)}",
        "CREATE MACRO featuredb_top_computed(feature, k, size) AS TABLE "
        f"{_windows(_COMPUTED, snapshot)}",
        "CREATE MACRO featuredb_top_named(feature, k, window_size) AS TABLE "
        f"{_top_contexts(snapshot, 'featuredb_row(feature)', 'featuredb_top_computed')}",
        "CREATE MACRO top_contexts(feature, k := 20, window_size := 16) AS TABLE "
        f"{_top_contexts(snapshot, 'featuredb_plain_row(feature)', 'featuredb_top_named')}",
    ]


def metadata(snapshot: Snapshot, table: str) -> str:
    """The document's source and metadata as columns of an answer, each after a comma."""
    columns = names.document_columns(snapshot)
    called = zip(columns, names.metadata_columns(columns), strict=True)
    return "".join(f", {table}.{name(own)} AS {name(new)}" for own, new in called)


def _feature_activations(snapshot: Snapshot) -> list[str]:
    bits = snapshot.position_bits
    firsts = first_rows(snapshot)
    # For each file the range of its features, and the call that reads one of them.
    calls = [
        (
            firsts[s.sae] + f.first_feature,
            firsts[s.sae] + f.end_feature - 1,
            f"FROM featuredb_part({literals.text('/' + f.file.path)}, {s.first_context}, "
            f"{f.stride}, {_HERE})",
        )
        for sae in snapshot.saes
        for s in snapshot.segments_of(sae.name)
        for f in s.feature_files
    ]
    position = literals.position("stride", "id")
    nothing = (
        "SELECT NULL::BIGINT AS context_id, NULL::INTEGER AS token_index, "
        "NULL::FLOAT AS activation WHERE false"
    )
    named = f"concat('FROM featuredb_activations_named(', {_NAME}, ')')"
    return [
        # Null where there are none.
        "CREATE MACRO featuredb_parts(row, feature) AS replace(list_aggregate("
        f"{literals.texts('row', calls)}, 'string_agg', ' UNION ALL '), '{_HERE}', "
        "featuredb_number(feature))",
        "CREATE MACRO featuredb_part(path, base, stride, id) AS TABLE SELECT "
        f"base + ({position} >> {bits}) AS context_id, "
        f"CAST({position} & {(1 << bits) - 1} AS INTEGER) AS token_index, "
        "CAST(activation AS FLOAT) AS activation "
        f"FROM {literals.below_root('path')} WHERE feature_id = id",
        "CREATE MACRO featuredb_activations_named(feature) AS TABLE FROM query(coalesce("
        "featuredb_parts(featuredb_row(feature), CAST(featuredb_number(feature) AS BIGINT)), "
        f"{literals.text(nothing)}))",
        "CREATE MACRO feature_activations(feature) AS TABLE FROM query(coalesce("
        f"featuredb_parts(featuredb_plain_row(feature), feature), {named}))",
    ]


def _feature_contexts(snapshot: Snapshot) -> str:
    return (
        "SELECT c.context_id, c.document_id, f.activation, f.token_index"
        f"{metadata(snapshot, 'd')} "
        "FROM featuredb_contexts_of(feature) AS f JOIN contexts AS c USING (context_id) "
        "JOIN documents AS d USING (document_id)"
    )


_KEPT = f"""
    SELECT rank, context_id, activation, CAST(token_index AS INTEGER) AS token_index,
        CAST(token_indexes AS INTEGER[]) AS token_indexes, activations
    FROM {literals.below_root("path")} WHERE feature_id = id AND kind = 0 AND rank <= k"""

_COMPUTED = """
    SELECT * FROM (
        SELECT CAST(row_number() OVER (ORDER BY activation DESC, context_id) AS INTEGER) AS rank,
            context_id, activation, token_index, token_indexes, activations
        FROM featuredb_contexts_of(feature)
    ) WHERE rank <= k"""


def _top_contexts(snapshot: Snapshot, row: str, otherwise: str) -> str:
    """The macro that chooses: answers kept ready, else contexts, else all activations.

    `query` plans only the text it is given, here a call with the names already read; planning all
    ways, each with the names spelled out, would take longer than answering. row: the feature's row
    among all features; otherwise: the macro that is called where that is null.
    """
    firsts = first_rows(snapshot)
    calls: list[list[int | str]] = []
    derived = {t.sae: t for t in snapshot.derived.saes}
    for sae in snapshot.saes:
        tables = derived[sae.name]
        kept = _reading("kept", tables.examples)
        first = firsts[sae.name]
        for w in tables.windows:
            own = [first + w.first_feature, first + w.end_feature - 1]
            calls.append([*own, _reading("ready", w.file), kept])
        if not tables.windows:  # written by format 1
            calls.append([first, first + sae.d_sae - 1, kept, kept])
    shape = {"first": "BIGINT", "last": "BIGINT", "ready": "VARCHAR", "kept": "VARCHAR"}
    held = literals.holding(row, literals.records(shape, calls))
    reading = (
        f"list_transform({held}, lambda r: "
        f"CASE WHEN window_size <= {schemas.WINDOW} THEN r['ready'] ELSE r['kept'] END)"
    )
    return (
        f"FROM query(concat(coalesce(CASE WHEN k <= {schemas.EXAMPLES_TOP} "
        f"THEN replace(list_first({reading}), '{_HERE}', featuredb_number(feature)) "
        f"ELSE concat('FROM featuredb_top_computed(', {_NAME}, ', ') END, "
        f"concat('FROM {otherwise}(', {_NAME}, ', ')), "
        "featuredb_k(k), ', ', featuredb_window(window_size), ')'))"
    )


def _reading(way: str, file: File) -> str:
    """The call that reads a file, up to k and the window."""
    return f"FROM featuredb_top_{way}({literals.text('/' + file.path)}, {_HERE}, "


def _ready(snapshot: Snapshot) -> str:
    """From the windows: what an answer shows is there, of the widest window that is kept."""
    return f"""
SELECT w.rank, w.context_id, w.document_id, w.activation, w.token_index,
    w.tokens[w.token_index - w.window_start + 1] AS token,
    CAST(greatest(w.window_start, w.token_index - size) AS INTEGER) AS window_start,
    w.tokens[1 + greatest(0, w.token_index - size - w.window_start)
        :w.token_index + size + 1 - w.window_start] AS tokens,
    w.activations[1 + greatest(0, w.token_index - size - w.window_start)
        :w.token_index + size + 1 - w.window_start] AS activations{metadata(snapshot, "d")}
FROM {literals.below_root("path")} AS w JOIN documents AS d USING (document_id)
WHERE w.feature_id = id AND w.rank <= k
ORDER BY w.rank"""


def _windows(best: str, snapshot: Snapshot) -> str:
    """The contexts of `best` with the tokens around their peaks and their documents."""
    return f"""
WITH best AS ({best}
),
placed AS (
    SELECT b.*, c.document_id, c.token_ids, greatest(b.token_index - size, 0) AS first,
        least(b.token_index + size + 1, c.n_tokens) AS stop
    FROM best AS b JOIN contexts AS c USING (context_id)
),
spelled AS (
    SELECT w.rank, list(v.text ORDER BY w.at) AS tokens
    FROM (
        SELECT rank, unnest(token_ids[first + 1:stop]) AS token_id,
            generate_subscripts(token_ids[first + 1:stop], 1) AS at
        FROM placed
    ) AS w JOIN vocabulary AS v USING (token_id)
    GROUP BY w.rank
)
SELECT p.rank, p.context_id, p.document_id, p.activation, p.token_index,
    s.tokens[p.token_index - p.first + 1] AS token,
    CAST(p.first AS INTEGER) AS window_start, s.tokens,
    [coalesce(p.activations[list_position(p.token_indexes, CAST(i AS INTEGER))], 0)
        FOR i IN range(p.first, p.stop)] AS activations{metadata(snapshot, "d")}
FROM placed AS p JOIN spelled AS s USING (rank) JOIN documents AS d USING (document_id)
ORDER BY p.rank"""
