"""Features by evidence: those whose top contexts have a word, a phrase or a pattern.

**Contexts that have the query.** Those whose text has the whole phrase. Where fewer than `ENOUGH`
documents do, those with all of the query's words. Where fewer do again, with any of them, and at
last with any of their stems, the words of at least `LONG` characters without their last `ENDING`. A
word matches at the beginning of a word of the text, without case: `dinosaur` is in `dinosaurs`.
Words of fewer than `SHORT` characters match whole words alone. Words in more than `COMMON` of all
documents are left out, unless all are. `/expression/` is a regular expression.

**Statistic.** The unit is the document. Of the N documents of the store M have a matching context.
Of the n documents among a feature's top contexts (`schemas.EXAMPLES_TOP`), h have one of these
contexts match. The null hypothesis is that the n are drawn from the N at random, so that h is
hypergeometric: p is its upper tail, Fisher's exact test of one side, and q is p adjusted over all
features that fire (Benjamini and Hochberg, 1995). A document counts in M for any of its contexts
and in h for a top context, so p is on the safe side where documents have several contexts.

**Score.** The log-likelihood ratio G2 of the table of h, n, M and N (Dunning, 1993). Features with
fewer than two such documents (where M is more than one), or with no more than chance would give,
are left out. Order: score descending, ties by SAE in the snapshot's order, then feature id.
"""

from __future__ import annotations

from collections.abc import Sequence

from featuredb.errors import QueryError, SQLError, first_line, shortened
from featuredb.render import numbers
from featuredb.render.view import Column, Heading, Table
from featuredb.store.snapshot import Snapshot
from queries.answers import Row
from queries.association import SQL_G2
from queries.catalog.summaries import LABELS, summaries
from queries.connection import Reader
from queries.question import Macro
from queries.show import feature_sizes, feature_table
from queries.sql import duckdb_errors

ENOUGH = 3
"""Documents that a phrase, or all words together, must be in to be asked for."""

SHORT = 4
LONG = 7
ENDING = 2
COMMON = 0.2

_LETTER = r"\p{L}\p{N}\p{M}_"
_TRIMMED = r"lower(trim(query, E' \t\n\r'))"
_WORDS = f"list_sort(list_distinct(regexp_extract_all({_TRIMMED}, '[{_LETTER}]+')))"
_EXPRESSION = "CASE WHEN len(query) > 2 AND regexp_full_match(query, '/.*/') THEN query[2:-2] END"
_STEM = f"CASE WHEN len(w) < {LONG} THEN w ELSE w[:-{ENDING} - 1] END"
# A query without letters or digits is looked for as it is, spaces escaped as all punctuation is.
_LITERAL = f"regexp_escape({_TRIMMED})"
_PHRASE = (
    rf"concat(CASE WHEN regexp_matches({_TRIMMED}, '^[{_LETTER}]') THEN '(?:^|[^{_LETTER}])' "
    rf"ELSE '' END, regexp_replace({_LITERAL}, '(\\?\s)+', '\\s+', 'g'))"
)


def is_expression(query: str) -> bool:
    """Whether a query is ``/expression/``."""
    return len(query) > 2 and query.startswith("/") and query.endswith("/")


def check_expression(reader: Reader, query: str) -> None:
    """Raises `QueryError` for an ``/expression/`` that DuckDB cannot read."""
    if is_expression(query):
        try:
            with duckdb_errors(reader.location):
                reader.cursor().execute("SELECT regexp_matches('', ?)", [query[1:-1]])
        except SQLError as error:
            what = first_line(error).removeprefix("Invalid Input Error: ")
            raise QueryError(f"{shortened(query)} is no regular expression: {what}") from None


def _among(word: str) -> str:
    """Those of the query's words that begin one of `said`. word: what stands for a word w."""
    same = f"CASE WHEN len(w) < {SHORT} THEN s = w ELSE starts_with(s, {word}) END"
    return f"list_filter({_WORDS}, lambda w: len(list_filter(said, lambda s: {same})) > 0)"


_MATCHING = f"""
texts AS (
    SELECT c.context_id, document_id, lower(CASE WHEN c.char_start < 0 THEN d.text  -- unknown
            ELSE substring(d.text, c.char_start + 1, c.char_end - c.char_start) END) AS body
    FROM contexts AS c JOIN documents AS d USING (document_id)
),
-- Only what has a word's letters somewhere is taken apart.
held AS MATERIALIZED (
    SELECT context_id, document_id, regexp_matches(body, {_PHRASE}) AS phrase,
        {_among("w")} AS has, len({_among(_STEM)}) > 0 AS stem
    FROM (
        SELECT *, list_distinct(regexp_extract_all(body, '[{_LETTER}]+')) AS said FROM texts
        WHERE {_EXPRESSION} IS NULL AND {_TRIMMED} <> '' AND (regexp_matches(body, {_PHRASE})
            OR len(list_filter({_WORDS}, lambda w: contains(body, {_STEM}))) > 0)
    )
    UNION ALL
    SELECT context_id, document_id, true, [], false FROM texts
    WHERE regexp_matches(body, {_EXPRESSION}, 'i')
),
everything AS (SELECT count(DISTINCT document_id) AS n FROM contexts),
common AS (
    SELECT word FROM (SELECT document_id, unnest(has) AS word FROM held), everything
    GROUP BY word, n HAVING count(DISTINCT document_id) > {COMMON} * n
),
kept AS (
    SELECT coalesce((SELECT list(word ORDER BY word) FROM (SELECT unnest({_WORDS}) AS word)
        ANTI JOIN common USING (word)), {_WORDS}) AS words
),
leveled AS (
    SELECT context_id, document_id, words, CASE WHEN phrase THEN 1
        WHEN len(list_intersect(has, words)) = len(words) THEN 2
        WHEN len(list_intersect(has, words)) > 0 THEN 3
        WHEN stem AND len(has) = 0 THEN 4 END AS level
    FROM held, kept
),
level AS (
    SELECT coalesce(min(level) FILTER (n >= {ENOUGH}), max(level)) AS chosen
    FROM (
        SELECT l.level, count(DISTINCT document_id) AS n
        FROM (SELECT DISTINCT level FROM leveled) AS l JOIN leveled AS o ON o.level <= l.level
        GROUP BY l.level
    )
),
matching AS MATERIALIZED (
    SELECT context_id, document_id,
        CASE chosen WHEN 1 THEN trim(query, E' \\t\\n\\r')
            WHEN 2 THEN list_aggregate(words, 'string_agg', ' and ')
            WHEN 3 THEN list_aggregate(words, 'string_agg', ' or ')
            ELSE list_aggregate(list_transform(words, lambda w: concat({_STEM}, '…')),
                'string_agg', ' or ') END AS matched
    FROM leveled, level WHERE level <= chosen
)"""


def _hypergeometric(h: str, n: str, m: str, of: str) -> str:
    """The chance that of `n` drawn from `of`, of which `m` match, `h` or more match."""

    def chosen(total: str, some: str) -> str:
        return f"lgamma({total} + 1) - lgamma({some} + 1) - lgamma({total} - {some} + 1)"

    term = f"exp({chosen(m, 'i')} + {chosen(f'({of} - {m})', f'({n} - i)')} - ({chosen(of, n)}))"
    # More than `n` of those that do not match cannot be drawn.
    first = f"greatest({h}, {n} - ({of} - {m}))"
    return (
        f"least(1, list_sum(list_transform(range({first}, least({n}, {m}) + 1), lambda i: {term})))"
    )


_CHANCE = _hypergeometric("hits", "top_documents", "matching_documents", "every")


def _evidence(snapshot: Snapshot) -> str:
    return f"""
WITH {_MATCHING},
tops AS (
    SELECT e.sae, e.feature_id, count(DISTINCT c.document_id) AS top_documents,
        count(DISTINCT m.document_id) AS hits
    FROM (SELECT sae, feature_id, context_id FROM examples WHERE kind = 0) AS e
        JOIN (SELECT context_id, document_id FROM contexts) AS c USING (context_id)
        LEFT JOIN matching AS m USING (context_id)
    GROUP BY e.sae, e.feature_id
),
counts AS (
    SELECT t.*, CAST(n AS BIGINT) AS every,
        (SELECT count(DISTINCT document_id) FROM matching) AS matching_documents
    FROM tops AS t, everything
),
tested AS (
    SELECT *, count(*) OVER () AS tests, {SQL_G2} AS g2,
        CASE WHEN hits = 0 THEN 1 ELSE {_CHANCE} END AS p
    FROM (SELECT *, CAST(hits AS DOUBLE) AS ab, CAST(top_documents AS DOUBLE) AS a,
            CAST(matching_documents AS DOUBLE) AS b, CAST(every AS DOUBLE) AS n FROM counts)
),
adjusted AS (
    SELECT *, least(1, min(p * tests / place) OVER (ORDER BY place DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) AS q
    FROM (SELECT *, row_number() OVER (ORDER BY p, sae, feature_id) AS place FROM tested)
),
best AS (
    SELECT CAST(row_number() OVER (ORDER BY round(g2, 9) DESC, sae_index, feature_id) AS INTEGER)
        AS rank, a.*
    FROM adjusted AS a JOIN (SELECT sae, sae_index FROM saes) USING (sae)
    WHERE hits >= least(2, matching_documents) AND hits * every > top_documents * matching_documents
    QUALIFY rank <= featuredb_k(k)
)
SELECT b.rank, b.sae, CAST(b.feature_id AS BIGINT) AS feature_id, CAST(b.g2 AS FLOAT) AS score,
    b.hits, b.top_documents, b.matching_documents, b.hits / b.top_documents AS share,
    b.hits * b.every / (b.top_documents * b.matching_documents) AS lift, b.p, b.q,
    f.density, f.max_activation, (SELECT any_value(matched) FROM matching) AS matched,
    f.top_tokens, f.promoted_tokens, p.label
FROM best AS b JOIN {summaries(snapshot)} AS f
    ON f.sae = b.sae AND f.feature_id = CAST(b.feature_id AS BIGINT) {LABELS}
ORDER BY b.rank"""


def found(row: Row) -> Heading:
    """What the contexts have. row: any of the answer."""
    documents = numbers.plural(row.matching_documents, "document")
    return Heading(f"their top contexts are among those of {documents} with ", row.matched)


def evidence_table(rows: Sequence[Row]) -> Table:
    """Features with how many of their top documents match, and how sure that is no chance."""
    shares = [f"{row.hits} of {row.top_documents}" for row in rows]
    columns = [
        Column("top documents", shares, right=True, style="bold"),
        Column("lift", [f"{row.lift:.3g}×" for row in rows], right=True),
        Column("q", [f"{row.q:.1g}" for row in rows], right=True),
        feature_sizes(rows)[0],
    ]
    return feature_table(rows, columns)


MACROS = (
    Macro(
        "evidence(query, k := 20)",
        _evidence,
        about="features whose top contexts have the words, as queries/evidence.py tests it",
    ),
)
