"""Table macros over one feature's activations: all of them, by context, and the top contexts."""

from __future__ import annotations

from featuredb import names, schemas
from featuredb.catalog import literals
from featuredb.catalog.literals import name
from featuredb.catalog.naming import first_rows
from featuredb.snapshot import Snapshot


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
        f"CREATE MACRO featuredb_top_kept(path, id, k, size) AS TABLE {_windows(_KEPT, snapshot)}",
        "CREATE MACRO featuredb_top_computed(feature, k, size) AS TABLE "
        f"{_windows(_COMPUTED, snapshot)}",
        "CREATE MACRO top_contexts(feature, k := 20, window_size := 16) AS TABLE "
        f"{_top_contexts(snapshot)}",
    ]


def metadata(snapshot: Snapshot, table: str) -> str:
    """The document's source and metadata as columns of an answer, each after a comma."""
    columns = ["source"]
    for corpus in snapshot.corpora:
        columns += [n for n in corpus.metadata if n not in columns]
    called = zip(columns, names.metadata_columns(columns), strict=True)
    return "".join(f", {table}.{name(own)} AS {name(new)}" for own, new in called)


def _feature_activations(snapshot: Snapshot) -> list[str]:
    mask = (1 << snapshot.position_bits) - 1
    firsts = first_rows(snapshot)
    rows: list[list[int | str]] = [
        [
            firsts[s.sae] + f.first_feature,
            firsts[s.sae] + f.end_feature - 1,
            "/" + f.file.path,
            s.first_context,
        ]
        for sae in snapshot.saes
        for s in snapshot.segments_of(sae.name)
        for f in s.feature_files
    ]
    if not rows:
        empty = (
            "SELECT NULL::BIGINT AS context_id, NULL::INTEGER AS token_index, "
            "NULL::FLOAT AS activation WHERE featuredb_row(feature) < 0"
        )
        return [f"CREATE MACRO feature_activations(feature) AS TABLE {empty}"]
    listed = literals.records(
        {"first": "BIGINT", "last": "BIGINT", "path": "VARCHAR", "base": "BIGINT"}, rows
    )
    anything = literals.records({"path": "VARCHAR"}, [[rows[0][2]]])
    # A feature that no file holds would leave read_parquet an empty list, which it refuses; any
    # file serves there, as its rows then have no context and are dropped.
    return [
        f"CREATE MACRO featuredb_files(row) AS list_filter({listed}, "
        "lambda x: row BETWEEN x['first'] AND x['last'])",
        "CREATE MACRO featuredb_paths(row) AS "
        f"list_transform(coalesce(nullif([x['path'] FOR x IN featuredb_files(row)], []), "
        f"[x['path'] FOR x IN {anything}]), lambda p: {literals.ROOT} || p)",
        "CREATE MACRO feature_activations(feature) AS TABLE SELECT * FROM (SELECT "
        "[x['base'] FOR x IN featuredb_files(featuredb_quiet_row(feature))]"
        "[CAST(file_index AS BIGINT) + 1] "
        f"+ CAST(position >> {snapshot.position_bits} AS BIGINT) AS context_id, "
        f"CAST(position & {mask} AS INTEGER) AS token_index, "
        "CAST(activation AS FLOAT) AS activation "
        "FROM read_parquet(featuredb_paths(featuredb_row(feature))) "
        "WHERE feature_id = featuredb_id(feature)) WHERE context_id IS NOT NULL",
    ]


def _feature_contexts(snapshot: Snapshot) -> str:
    return (
        "SELECT c.context_id, c.document_id, f.activation, f.token_index"
        f"{metadata(snapshot, 'd')} "
        "FROM featuredb_contexts_of(feature) AS f JOIN contexts AS c USING (context_id) "
        "JOIN documents AS d USING (document_id)"
    )


_KEPT = """
    SELECT rank, context_id, activation, CAST(token_index AS INTEGER) AS token_index,
        CAST(token_indexes AS INTEGER[]) AS token_indexes, activations
    FROM read_parquet(path) WHERE feature_id = id AND kind = 0 AND rank <= k"""

_COMPUTED = """
    SELECT * FROM (
        SELECT CAST(row_number() OVER (ORDER BY activation DESC, context_id) AS INTEGER) AS rank,
            context_id, activation, token_index, token_indexes, activations
        FROM featuredb_contexts_of(feature)
    ) WHERE rank <= k"""


def _top_contexts(snapshot: Snapshot) -> str:
    """The macro that chooses: what is kept ready for every feature, else all its activations.

    `query` plans only the text it is given, here a call with the names already read; planning
    both ways, each with the names spelled out, would take longer than answering.
    """
    firsts = first_rows(snapshot)
    last = {s.name: firsts[s.name] + s.d_sae - 1 for s in snapshot.saes}
    examples = literals.pick(
        "featuredb_row(feature)",
        [(firsts[t.sae], last[t.sae], t.examples.path) for t in snapshot.derived.saes],
    )
    numbers = "featuredb_k(k), featuredb_window(window_size)"
    return (
        f"FROM query(CASE WHEN k <= {schemas.EXAMPLES_TOP} THEN "
        f"format('FROM featuredb_top_kept({{}}, {{}}, {{}}, {{}})', {_quoted(examples)}, "
        f"featuredb_id(feature), {numbers}) ELSE "
        f"format('FROM featuredb_top_computed({{}}, {{}}, {{}})', "
        f"{_quoted('CAST(feature AS VARCHAR)')}, {numbers}) END)"
    )


def _quoted(value: str) -> str:
    """A text expression as the literal that gives the text back."""
    return f"concat('''', replace({value}, '''', ''''''), '''')"


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
