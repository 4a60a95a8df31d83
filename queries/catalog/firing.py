"""What fires on stored tokens, in SQL: from the by-token copy to the most specific features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featuredb.store.positions import token_mask
from featuredb.store.snapshot import Snapshot, TokenFile
from queries.catalog import literals
from queries.catalog.summaries import LABELS, SUMMARY, summaries
from queries.specificity import SQL_TYPICAL

NOT_STORED = (
    "no stored document has that text: for new text ask Database.fires_on, Database.sql or "
    "`featuredb fires`, which run the model"
)

_NOTHING = (
    "SELECT NULL::INTEGER AS sae_index, NULL::BIGINT AS feature_id, NULL::INTEGER AS token_index, "
    "NULL::FLOAT AS activation WHERE false"
)
_FILE = {"first": "BIGINT", "last": "BIGINT", "path": "VARCHAR", "base": "BIGINT"}


def _files(snapshot: Snapshot) -> Iterator[tuple[int, str, list[TokenFile]]]:
    """(index of the SAE, order its lists are gaps along, files), for every SAE that has any."""
    for index, sae in enumerate(snapshot.saes):
        files = [f for segment in snapshot.segments_of(sae.name) for f in segment.token_files]
        if files:
            yield index, files[0].order, files


def _records(files: Sequence[TokenFile]) -> str:
    return literals.records(
        _FILE,
        [[f.first_context, f.end_context - 1, "/" + f.file.path, f.base_context] for f in files],
    )


def statement_in(snapshot: Snapshot) -> str:
    """``fires_in``: the features of a stored context."""
    bits = snapshot.position_bits
    mask = token_mask(bits)
    branches = []
    for index, order, files in _files(snapshot):
        match = (
            f"list_filter({_records(files)}, lambda x: context BETWEEN x['first'] AND x['last'])[1]"
        )
        anything = literals.text("/" + files[0].file.path)
        path = f"coalesce({match}['path'], {anything})"
        low = f"(context - {match}['base']) << {bits}"
        # Where no file covers the context the bounds are null and any file gives no rows.
        source = (
            f"{literals.below_root(path)} AS t "
            f"WHERE position >= CAST({low} AS UINTEGER) "
            f"AND position <= CAST(({low}) + {mask} AS UINTEGER)"
        )
        token_index = f"CAST(position & {mask} AS INTEGER)"
        branches.append(_unlisted(index, order, token_index, source))
    active = "\n    UNION ALL ".join(branches) or _NOTHING
    return f"""
WITH active AS ({active}),
words AS (
    SELECT CAST(place - 1 AS INTEGER) AS token_index, token_id
    FROM (
        SELECT unnest(token_ids) AS token_id, generate_subscripts(token_ids, 1) AS place
        FROM contexts WHERE context_id = featuredb_context(context)
    )
),
{_ranked(snapshot)}"""


def statement_on(snapshot: Snapshot) -> str:
    """``fires_on``: the features of the stored document with that text."""
    bits = snapshot.position_bits
    branches = []
    for index, order, files in _files(snapshot):
        # The needed tokens of each file are a small table. A join on the file's positions lets
        # DuckDB skip every row group without them.
        source = f"""{literals.files([f.file.path for f in files])} AS t
        JOIN (
            SELECT CAST(f.place - 1 AS UBIGINT) AS file_index, p.token_index,
                CAST(((p.context_id - f.file['base']) << {bits}) + p.place AS UINTEGER) AS position
            FROM places AS p JOIN (
                SELECT unnest({_records(files)}) AS file,
                    generate_subscripts({_records(files)}, 1) AS place
            ) AS f ON p.context_id BETWEEN f.file['first'] AND f.file['last']
        ) AS w ON t.position = w.position AND t.file_index = w.file_index"""
        branches.append(_unlisted(index, order, "w.token_index", source))
    active = "\n    UNION ALL ".join(branches) or _NOTHING
    corpora = " ".join(
        f"WHEN c.document_id >= {c.first_document} "
        f"AND c.document_id < {c.first_document + c.n_documents} "
        f"THEN {{'bos': {int(c.bos_token_id is not None)}, 'stride': {c.stride or 0}}}"
        for c in snapshot.corpora
    )
    extent = f"CASE {corpora} END" if corpora else "{'bos': 0, 'stride': 0}"
    return f"""
WITH found AS (SELECT min(document_id) AS document_id FROM documents WHERE text = document_text),
document AS (
    SELECT CASE WHEN document_id IS NULL THEN error({literals.text(NOT_STORED)})
        ELSE document_id END AS document_id
    FROM found
),
windows AS (
    SELECT c.context_id, c.token_ids, c.n_tokens, c.context_index, {extent} AS corpus
    FROM contexts AS c JOIN document USING (document_id)
),
-- A window starts where the one before ended, or a stride after it started.
placed AS (
    SELECT *, CASE WHEN corpus['stride'] = 0
        THEN coalesce(sum(n_tokens - corpus['bos']) OVER (ORDER BY context_index
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
        ELSE context_index * corpus['stride'] END AS start
    FROM windows
),
fresh AS (
    SELECT *, greatest(coalesce(max(start + n_tokens - corpus['bos']) OVER (
        ORDER BY context_index ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0), start)
        AS covered
    FROM placed
),
places AS (
    SELECT context_id, place, CAST(start + place - corpus['bos'] AS INTEGER) AS token_index,
        token_ids[place + 1] AS token_id
    FROM (
        SELECT *, unnest(range(corpus['bos'] + CAST(covered - start AS BIGINT),
            CAST(n_tokens AS BIGINT))) AS place
        FROM fresh
    )
),
words AS (SELECT token_index, token_id FROM places),
active AS ({active}),
{_ranked(snapshot)}"""


def _unlisted(index: int, order: str, token_index: str, source: str) -> str:
    """One row per activation of the by-token rows AS t in `source`.

    order: path of the order that the lists are gaps along.
    """
    values = f"{token_index} AS token_index, CAST(unnest(t.activations) AS FLOAT) AS activation"
    return f"""(
        SELECT {index} AS sae_index, CAST(o.feature_id AS BIGINT) AS feature_id, g.token_index,
            g.activation
        FROM (
            SELECT token_index, activation, CAST(sum(gap) OVER (PARTITION BY token_index
                ORDER BY place ROWS UNBOUNDED PRECEDING) AS UINTEGER) AS rank
            FROM (
                SELECT {values}, unnest(t.gaps) AS gap, generate_subscripts(t.gaps, 1) AS place
                FROM {source}
            )
        ) AS g JOIN {literals.file(order)} AS o USING (rank)
    )"""


PARAMETERS = "k := 20, ranked := 'specificity', min_density := NULL, max_density := NULL"
"""Of `statement_in` and `statement_on`. Not called by: that is a word of SQL."""

_SCORE = """CASE ranked WHEN 'specificity' THEN CAST(specificity AS DOUBLE)
        WHEN 'activation' THEN CAST(activation AS DOUBLE) WHEN 'mass' THEN mass
        ELSE error(format('ranked must be one of specificity, activation, mass, not {}',
            ranked)) END"""


def _density(bound: str, default: int) -> str:
    """A bound on densities, from 0 to 1."""
    refused = f"error(format('a density is from 0 to 1, not {{}}', {bound}))"
    return (
        f"CASE WHEN {bound} IS NULL THEN {default} WHEN {bound} BETWEEN 0 AND 1 THEN {bound} "
        f"ELSE {refused} END"
    )


def _ranked(snapshot: Snapshot) -> str:
    """From `active` and `words` to the answer."""
    return f"""size AS (SELECT count(*) AS n FROM words),
peaks AS (
    SELECT sae_index, feature_id, max(activation) AS activation,
        arg_min(token_index, (-activation, token_index)) AS token_index,
        CAST(count(*) AS INTEGER) AS n_tokens, list(token_index) AS places,
        list(activation) AS activations, sum(CAST(activation AS DOUBLE)) AS mass
    FROM active GROUP BY sae_index, feature_id
),
scored AS (
    SELECT p.*, s.sae,
        specificity(p.activation, f.max_activation, f.count, s.recorded_tokens, t.typical)
            AS specificity
    FROM peaks AS p JOIN (SELECT sae_index, sae, recorded_tokens FROM saes) AS s USING (sae_index)
    JOIN features AS f ON f.sae = s.sae AND f.feature_id = p.feature_id
    JOIN ({SQL_TYPICAL}) AS t ON t.sae = s.sae
    WHERE f.density >= {_density("min_density", 0)} AND f.density <= {_density("max_density", 1)}
),
ordered AS (SELECT *, {_SCORE} AS score FROM scored),
best AS (
    SELECT CAST(row_number() OVER (ORDER BY score DESC, sae_index, feature_id) AS INTEGER)
        AS rank, *
    FROM ordered QUALIFY rank <= featuredb_k(k)
)
SELECT b.rank, b.sae, b.feature_id, b.specificity, b.activation, b.token_index, v.text AS token,
    b.n_tokens, [coalesce(b.activations[list_position(b.places, CAST(i AS INTEGER))], 0)
        FOR i IN range(size.n)] AS activations, {SUMMARY}
FROM best AS b JOIN words AS w USING (token_index) JOIN vocabulary AS v USING (token_id)
JOIN {summaries(snapshot)} AS f ON f.sae = b.sae AND f.feature_id = b.feature_id
{LABELS} CROSS JOIN size
ORDER BY b.rank"""
