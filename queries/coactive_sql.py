"""What `queries.coactive` counts, in SQL."""

from __future__ import annotations

from featuredb.store.recorded import ranges_read
from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.catalog.recorded import common_activations, common_contexts, kept
from queries.question import Macro

UNITS = ("token", "document")

SAE = "featuredb_sae(feature)"
NUMBER = "CAST(featuredb_number(feature) AS BIGINT)"
"""The SAE and the number of a macro's `feature`."""


def _read_lists(snapshot: Snapshot, sae: str, columns: str, tokens: str) -> str:
    """CTEs `ranks`: each active feature of an SAE at some tokens, as a rank, with `columns` of the
    token.

    sae: its name, as SQL. tokens: the CTE with context_id and token_index of the tokens. A join on
    the files' positions lets DuckDB skip every row group without them.

    A rank is the sum of its list's gaps so far: the sum of all gaps so far, in whatever order the
    lists come, without those of the lists before. Windows without an order run in one stream, so
    both sums see the lists in the same order, and nothing is sorted: a third of the time.
    """
    bits = snapshot.position_bits
    shape = {
        "sae": "VARCHAR",
        "first": "BIGINT",
        "last": "BIGINT",
        "path": "VARCHAR",
        "base": "BIGINT",
    }
    rows: list[list[int | str]] = [
        [each.name, f.first_context, f.end_context - 1, "/" + f.file.path, f.base_context]
        for each in snapshot.saes
        for segment in snapshot.segments_of(each.name)
        for f in segment.token_files
    ]
    own = f"list_filter({literals.records(shape, rows)}, lambda f: f['sae'] = {sae})"
    # Of an SAE without files any one is read, for nothing.
    some = f"CASE WHEN len({own}) = 0 THEN {literals.records(shape, rows[:1])} ELSE {own} END"
    paths = f"list_transform({some}, lambda f: {literals.ROOT} || f['path'])"
    return f"""files AS (
    SELECT unnest({own}) AS file, generate_subscripts({own}, 1) - 1 AS file_index
),
wanted AS (
    SELECT {columns}, CAST(f.file_index AS UBIGINT) AS file_index,
        CAST(((t.context_id - f.file['base']) << {bits}) + t.token_index AS UINTEGER) AS position
    FROM {tokens} AS t JOIN files AS f ON t.context_id BETWEEN f.file['first'] AND f.file['last']
),
lists AS (
    SELECT {columns}, t.gaps, sum(list_sum(t.gaps)) OVER (ROWS UNBOUNDED PRECEDING)
        - list_sum(t.gaps) AS before
    FROM {literals.rows(paths)} AS t JOIN wanted AS w USING (file_index, position)
),
ranks AS (
    SELECT {columns}, CAST(sum(gap) OVER (ROWS UNBOUNDED PRECEDING) - before AS UINTEGER) AS rank
    FROM (SELECT {columns}, before, unnest(gaps) AS gap FROM lists)
)"""


def _order(snapshot: Snapshot, sae: str) -> str:
    """The rows of an SAE's feature order. sae: its name, as SQL."""
    branches = " ".join(
        f"WHEN {literals.text(each.name)} THEN {literals.text('/' + each.order.path)}"
        for each in snapshot.saes
        if each.order is not None
    )
    return literals.below_root(f"CASE {sae} {branches} END")


def _counted(snapshot: Snapshot, sae: str, unit: str, tokens: str) -> str:
    """CTEs up to `counted`: ab, the units among `tokens` in which each feature is active."""
    columns = "1 AS one" if unit == "token" else "document_id"
    return f"""{_read_lists(snapshot, sae, columns, tokens)},
counted AS (
    SELECT feature_id, {_BOTH[unit]} AS ab FROM ranks
    JOIN {_order(snapshot, sae)} AS o USING (rank) GROUP BY feature_id
)"""


def _counts(snapshot: Snapshot, unit: str) -> str:
    """feature_id, n, a, b, ab (both) of every other active feature of the SAE, as DOUBLE."""
    if unit == "token":
        ctes = f"""own AS (FROM feature_activations(feature)),
units AS (
    SELECT recorded_tokens AS n, (SELECT count(*) FROM own) AS a FROM saes WHERE sae = {SAE}
),
{_counted(snapshot, SAE, unit, "own")}"""
    else:
        ctes = f"""{common_contexts(snapshot, SAE, SAE)},
own AS (
    SELECT DISTINCT document_id FROM feature_activations(feature) JOIN contexts USING (context_id)
),
{_UNITS["document"]},
places AS (
    SELECT document_id, context_id, unnest(range(c.n_tokens::BIGINT)) AS token_index
    FROM contexts AS c SEMI JOIN own USING (document_id)
),
{_counted(snapshot, SAE, unit, "places")}"""
    return f"""
WITH {ctes}
SELECT f.feature_id, CAST(u.n AS DOUBLE) AS n, CAST(u.a AS DOUBLE) AS a,
    CAST(f.{_ALONE[unit]} AS DOUBLE) AS b, CAST(coalesce(c.ab, 0) AS DOUBLE) AS ab
FROM features AS f LEFT JOIN counted AS c USING (feature_id), units AS u
WHERE f.sae = {SAE} AND f.count > 0 AND f.feature_id <> {NUMBER}"""


_BOTH = {"token": "count(*)", "document": "count(DISTINCT document_id)"}
_ALONE = {"token": "count", "document": "n_documents"}
_UNITS = {
    "token": """units AS (
    SELECT (SELECT coalesce(sum(n), 0) FROM common) AS n, (SELECT count(*) FROM own) AS a
)""",
    "document": """units AS (
    SELECT (SELECT count(DISTINCT document_id) FROM common) AS n,
        (SELECT count(*) FROM own) AS a
)""",
}


def _counts_elsewhere(snapshot: Snapshot, unit: str) -> str:
    """As `_counts`, of the features of another SAE, `partner`, over the common tokens of the two.

    Where the SAEs recorded other tokens the whole of the partner is read, for what its features do
    on common tokens alone.
    """
    if len(snapshot.saes) == 1:
        return "SELECT NULL AS feature_id"  # no macro calls it: each costs its binding
    if unit == "token":
        own, places = common_activations(snapshot, "feature"), "FROM own"
    else:
        own = f"SELECT DISTINCT document_id FROM ({common_activations(snapshot, 'feature')})"
        places = f"SELECT document_id, context_id, token_index FROM {_TOKENS} SEMI JOIN own AS o "
        places += f"USING (document_id) {kept(snapshot, 'c')}"
    return f"""
WITH {common_contexts(snapshot, SAE, "partner")},
own AS ({own}),
{_UNITS[unit]},
places AS ({places}),
{_counted(snapshot, "partner", unit, "places")},
differ AS (SELECT 1 AS one WHERE NOT ({_same(snapshot)})),
alone AS (
    SELECT feature_id, {_ALONE[unit]} AS b FROM features
    WHERE sae = partner AND NOT EXISTS (FROM differ)
    UNION ALL
    SELECT t.feature_id, {_BOTH[unit]} FROM (FROM activations WHERE sae = partner) AS t
    JOIN (FROM common, differ) AS c USING (context_id) {kept(snapshot, "t")}
    GROUP BY t.feature_id
)
SELECT f.feature_id, CAST(u.n AS DOUBLE) AS n, CAST(u.a AS DOUBLE) AS a,
    CAST(f.b AS DOUBLE) AS b, CAST(coalesce(c.ab, 0) AS DOUBLE) AS ab
FROM alone AS f LEFT JOIN counted AS c USING (feature_id), units AS u WHERE f.b > 0"""


_TOKENS = """(
    SELECT document_id, context_id, token_ids, excluded,
        unnest(range(skipped, len(token_ids)::BIGINT)) AS token_index FROM common
) AS c"""


def _same(snapshot: Snapshot) -> str:
    """Whether the SAEs of `feature` and `partner` recorded the same tokens."""
    kinds: dict[object, int] = {}
    branches = " ".join(
        f"WHEN {literals.text(sae.name)} THEN "
        + str(kinds.setdefault((*ranges_read(snapshot, sae.name), sae.excluded_tokens), len(kinds)))
        for sae in snapshot.saes
    )
    sinks = "SELECT context_id, token_index FROM sinks WHERE sae = "
    return (
        f"CASE {SAE} {branches} END = CASE partner {branches} END "
        f"AND NOT EXISTS ({sinks}{SAE} EXCEPT {sinks}partner) "
        f"AND NOT EXISTS ({sinks}partner EXCEPT {sinks}{SAE})"
    )


def call(unit: str, partner: str | None = None) -> str:
    """SQL that writes a call of the macro that counts. partner: another SAE's name, as SQL."""
    if partner is None:
        return f"concat('FROM featuredb_coactive_{unit}(', {literals.FEATURE}, ')')"
    given = literals.quoted(partner)
    name = f"FROM featuredb_coactive_{unit}_elsewhere("
    return f"concat('{name}', {literals.FEATURE}, ', ', {given}, ')')"


MACROS = (
    Macro("featuredb_coactive_token(feature)", lambda s: _counts(s, "token")),
    Macro("featuredb_coactive_document(feature)", lambda s: _counts(s, "document")),
    Macro(
        "featuredb_coactive_token_elsewhere(feature, partner)",
        lambda s: _counts_elsewhere(s, "token"),
    ),
    Macro(
        "featuredb_coactive_document_elsewhere(feature, partner)",
        lambda s: _counts_elsewhere(s, "document"),
    ),
)
