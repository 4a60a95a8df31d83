"""Features found by the tokens they fire on and promote.

A word of the query matches a token when the two are equal once spaces around the token and case
are ignored. A feature's score is the share of its firing mass (count times mean activation) that
falls on matching tokens among its `schemas.TOP_TOKENS` most frequent, plus `PROMOTED` divided by
the rank of the first matching token among those it promotes. Features that match nowhere are
left out. Order: score descending, ties by SAE in the snapshot's order, then feature id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featuredb.render.view import Column, Heading, View
from featuredb.store.snapshot import Snapshot
from queries.answers import Answer
from queries.arguments import check_k, check_text
from queries.catalog.summaries import summaries
from queries.connection import Reader
from queries.question import Macro, Question
from queries.show import counted, feature_sizes, feature_table, score_column
from queries.sql import duckdb_errors

PROMOTED = 0.2
"""What the most promoted token weighs against firing on nothing but the word."""


@dataclass(frozen=True, repr=False)
class SearchHits(Answer):
    """Features found by `query`, by score descending.

    Columns: rank i32, sae string, feature_id i64, score f32, density f64, max_activation f32,
    matched string (what the query met), top_tokens list<string>, promoted_tokens list<string>.
    """

    kind: ClassVar[str] = "search_hits"

    query: str

    def view(self) -> View:
        """The features with what was matched."""
        heading = Heading("search ", self.query, f" · {counted(len(self), 'feature')}")
        rows = list(self)
        if not rows:
            return View([[heading]])
        matched = Column("matched", [row.matched or "" for row in rows], tokens=True)
        columns = [score_column("score", rows, "score"), matched, *feature_sizes(rows)]
        return View([[heading], [feature_table(rows, columns)]])


def search(reader: Reader, query: str, k: int = 20) -> SearchHits:
    """See `featuredb.Database.search`. No rows for a blank query."""
    k = check_k(k)
    check_text(query, "a search")
    with duckdb_errors(reader.location):
        table = reader.cursor().sql("FROM search(?, k := ?)", params=[query, k]).to_arrow_table()
    return SearchHits(table, query=query)


def _search(snapshot: Snapshot) -> str:
    # Lists are searched where they are: unnesting both columns first takes four times as long.
    words = "list_filter(regexp_split_to_array(lower(query), '\\s+'), lambda w: w <> '')"
    met = f"list_contains({words}, lower(trim(t['token'], E' \\t\\n\\r')))"
    mass = "t['count'] * CAST(t['mean_activation'] AS DOUBLE)"
    return f"""
WITH met AS (
    SELECT sae, feature_id, count, mean_activation, promoted_tokens,
        list_filter(top_tokens, lambda t: {met}) AS fired,
        list_position(list_transform(promoted_tokens, lambda t: {met}), true) AS place
    FROM features
),
scored AS (
    SELECT sae, feature_id, coalesce(fired[1]['token'], promoted_tokens[place]['token']) AS matched,
        CAST(coalesce(list_sum(list_transform(fired, lambda t: {mass}))
                / (count * mean_activation), 0)
            + coalesce({PROMOTED} / place, 0) AS FLOAT) AS score
    FROM met WHERE len(fired) > 0 OR place > 0
),
best AS (
    SELECT CAST(row_number() OVER (ORDER BY score DESC, sae_index, feature_id) AS INTEGER)
        AS rank, sae, feature_id, score, matched
    FROM scored JOIN (SELECT sae, sae_index FROM saes) USING (sae)
)
SELECT b.rank, b.sae, b.feature_id, b.score, f.density, f.max_activation, b.matched,
    f.top_tokens, f.promoted_tokens
FROM best AS b JOIN {summaries(snapshot)} AS f USING (sae, feature_id)
WHERE b.rank <= featuredb_k(k)
ORDER BY b.rank"""


QUESTION = Question("search", SearchHits, "search", (Macro("search(query, k := 20)", _search),))
