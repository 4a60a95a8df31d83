"""Features found by their labels and by the tokens they fire on and promote.

**Words.** A query is split into words: letters, digits and marks of any script. Punctuation counts
only in a query that has nothing else. ``music*`` stands for every word that begins so. A word
matches a token equal to it without case and without what surrounds the token's letters. A word
that no token of the vocabulary equals is matched by its pieces of at least `PIECE` characters, each
worth its share of the word's characters.

**Score.** Per word, the share of the feature's firing mass (count times mean activation) that falls
on matching tokens among its `schemas.TOP_TOKENS` most frequent, plus `PROMOTED` divided by the rank
of the first matching token among those it promotes. That is multiplied by count / (count + `FEW`),
so that a feature seen a few times does not lead, and by the word's weight, and summed over words.

A word of a label counts as much as all of the feature's firing, divided by the square root of the
label's number of words, a third of that for an automatic label, however often the feature fires.
A query that names a feature, as ``1234`` or ``sae/1234``, finds it.

**Weight.** ln(features / features that fire on the word), relative to the rarest word of the query.
A word that more than `COMMON` of the features fire on weighs nothing beside a rarer one.

Features that match nowhere are left out. Order: score descending, ties by SAE in the snapshot's
order, then feature id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render.view import Column, Heading, View
from featuredb.store.snapshot import Snapshot
from queries.answers import Answer
from queries.arguments import check_k, check_text
from queries.catalog import literals
from queries.catalog.summaries import LABELS, summaries
from queries.connection import Reader
from queries.evidence import MACROS as EVIDENCE
from queries.evidence import check_expression, evidence_table, found, is_expression
from queries.question import Macro, Question
from queries.show import counted, feature_sizes, feature_table, score_column
from queries.sql import duckdb_errors

WAYS = ("tokens", "evidence", "meaning")

PROMOTED = 0.01
"""What the most promoted token weighs against firing on nothing but the word."""

FEW = 10
"""A feature that fired this often counts half."""

AUTOMATIC = 1 / 3
"""What a word of an automatic label weighs against one of another."""

OF_LABEL = f"CASE WHEN method = 'automatic' THEN {AUTOMATIC} ELSE 1 END / sqrt(len(of))"
"""What each word of a label weighs, of the list `of` of its words."""

COMMON = 0.01
"""Share of the features above which a word is common."""

PIECE = 3
"""Characters that a piece of a word has at least."""

_LIKE = 0.8
"""Jaro-Winkler similarity from which on a token is suggested for a word that matched nothing."""

LETTER = r"\p{L}\p{N}\p{M}_"

_INSIDE = re.compile(r"(?<=\S) (?=\S)")


@dataclass(frozen=True, repr=False)
class SearchHits(Answer):
    """Features found by `query`, by score descending. By meaning: the cosine to a label.

    Columns: rank i32, sae string, feature_id i64, score f32, then for `by` evidence hits,
    top_documents and matching_documents i64, share, lift, p and q f64 (`queries.evidence`), then
    density f64, max_activation f32, matched string (the label and tokens that the query met,
    the weightiest first, or what the contexts have), top_tokens list<string>, promoted_tokens
    list<string>, label string (the preferred one, or null).

    suggestions: for words that no feature mostly fires on, similar ones that some do.
    """

    kind: ClassVar[str] = "search_hits"

    query: str
    by: str = "tokens"
    suggestions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def view(self) -> View:
        """The features with what was matched, and what to search for instead."""
        heading = Heading("search ", self.query, f" · {counted(len(self), 'feature')}")
        missed = [
            Heading(f"no feature mostly fires on {word}", after=_did_you_mean(words))
            for word, words in self.suggestions.items()
        ]
        rows = list(self)
        if not rows:
            return View([[heading, *missed]])
        if self.by == "evidence":
            return View([[heading, *missed, found(rows[0])], [evidence_table(rows)]])
        # A label's spaces are no tokens' spaces, which are shown as dots.
        shown = [_INSIDE.sub("\u00a0", row.matched or "") for row in rows]
        matched = Column("matched", shown, tokens=True)
        columns = [score_column("score", rows, "score"), matched, *feature_sizes(rows)]
        return View([[heading, *missed], [feature_table(rows, columns)]])


Nearest = Callable[[Sequence[str], str], "Sequence[float]"]
"""Cosines of texts to a query."""


def search(
    reader: Reader,
    query: str,
    k: int = 20,
    by: str | None = None,
    nearest: Nearest | None = None,
) -> SearchHits:
    """See `featuredb.Database.search`. No rows for a blank query. nearest: for `by` meaning."""
    k = check_k(k)
    check_text(query, "a search")
    if by not in (None, *WAYS):
        raise QueryError(f"by must be {' or '.join(WAYS)}, not {by!r}")
    if by == "meaning":
        assert nearest is not None
        return _by_meaning(reader, query, k, nearest)
    if by is None and is_expression(query):
        by = "evidence"
    if by != "tokens":
        check_expression(reader, query)
    suggestions: dict[str, tuple[str, ...]] = {}
    with duckdb_errors(reader.location):
        cursor = reader.cursor()
        if by != "evidence":
            table = cursor.sql("FROM search(?, k := ?)", params=[query, k]).to_arrow_table()
            similar = cursor.execute(_similar(reader.snapshot), {"query": query}).fetchall()
            suggestions = {word: tuple(like) for word, like in similar}
        if by == "evidence" or (by is None and not len(table)):
            other = cursor.sql("FROM evidence(?, k := ?)", params=[query, k]).to_arrow_table()
            if by == "evidence" or len(other):
                table, by = other, "evidence"
    return SearchHits(table, query=query, by=by or "tokens", suggestions=suggestions)


def _by_meaning(reader: Reader, query: str, k: int, nearest: Nearest) -> SearchHits:
    """The features with a label that means most nearly the same."""
    labels = reader.cursor().sql(_LABELS).fetchall()
    if not labels:
        raise QueryError(
            "no feature has a label to search by meaning: write some, import some, or let "
            "`featuredb labels make` do it"
        )
    texts = list(dict.fromkeys(text for *_, text in labels))
    cosine = dict(zip(texts, nearest(texts, query), strict=True))
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for sae, feature, text in labels:
        found = (cosine[text], text)
        best[sae, feature] = max(best.get((sae, feature), found), found, key=lambda each: each[0])
    order = reader.store.sae_order
    ranked = sorted(best, key=lambda f: (-best[f][0], order[f[0]], f[1]))[:k]
    saes = {sae.name: sae for sae in reader.snapshot.saes}
    features = reader.store.features
    about = features.summaries([features.row(saes[sae], number) for sae, number in ranked])
    columns = {
        "rank": pa.array(range(1, len(ranked) + 1), pa.int32()),
        "sae": about.column("sae"),
        "feature_id": about.column("feature_id"),
        "score": pa.array([best[feature][0] for feature in ranked], pa.float32()),
        "density": about.column("density"),
        "max_activation": about.column("max_activation"),
        "matched": pa.array([best[feature][1] for feature in ranked], pa.string()),
        **{name: about.column(name) for name in ("top_tokens", "promoted_tokens", "label")},
    }
    return SearchHits(pa.table(columns), query=query, by="meaning")


_LABELS = "SELECT sae, feature_id, text FROM labels ORDER BY sae, feature_id, preferred DESC, text"


def _did_you_mean(words: tuple[str, ...]) -> str:
    return f": did you mean {', '.join(words)}?" if words else ""


def _words_and_spellings(snapshot: Snapshot, query: str) -> str:
    """Tables for a WITH: words of the query, the vocabulary, spellings (word, token, part)."""
    trimmed = r"lower(trim(text, E' \t\n\r'))"
    edges = f"'^[^{LETTER}]+|[^{LETTER}]+$'"
    return f"""
split AS (SELECT regexp_extract_all(lower({query}), '[{LETTER}]+\\*?') AS words),
words AS (
    -- Stars alone begin no word, and are looked for as they are.
    SELECT coalesce(nullif(rtrim(w, '*'), ''), w) AS word,
        bool_or(suffix(w, '*') AND rtrim(w, '*') <> '') AS prefix
    FROM (SELECT unnest(CASE WHEN len(words) > 0 THEN words
            ELSE regexp_split_to_array(trim(lower({query})), '\\s+') END) AS w FROM split)
    WHERE w <> '' GROUP BY word
),
vocabulary AS (
    SELECT DISTINCT text AS token, {trimmed} AS bare
    FROM {literals.file(snapshot.vocabulary.path)} WHERE NOT special
),
-- Strings are compared before patterns are tried: a vocabulary has up to 262,144 tokens.
near_whole AS (
    SELECT word, prefix, token, CASE WHEN regexp_matches(word, '[{LETTER}]')
        THEN regexp_replace(bare, {edges}, '', 'g') ELSE bare END AS spelled
    FROM vocabulary JOIN words ON contains(bare, word)
),
whole AS (
    SELECT word, token FROM near_whole
    WHERE CASE WHEN prefix THEN starts_with(spelled, word) ELSE spelled = word END
),
spellings AS MATERIALIZED (
    SELECT word, token, 1.0 AS part FROM whole UNION ALL
    SELECT word, token, len(bare) / len(word) FROM vocabulary JOIN words
        ON len(bare) >= {PIECE} AND contains(word, bare) AND NOT prefix
    WHERE word NOT IN (SELECT word FROM whole)
        AND (starts_with(word, bare) OR starts_with(token, bare))
)"""


def _met(lists: str, columns: str) -> str:
    """Rows of `features` whose `lists` have a token of `spellings`, one per token and word."""
    # Features without one are left out before their lists are taken apart: that takes the time.
    return f"""(
        SELECT sae, feature_id, count, {columns}, unnest({lists}) AS t,
            generate_subscripts({lists}, 1) AS place
        FROM features WHERE list_has_any(
            list_transform({lists}, lambda t: t['token']), (SELECT list(token) FROM spellings))
    ) JOIN spellings ON t['token'] = token"""


def _search(snapshot: Snapshot) -> str:
    mass = "t['count'] * CAST(t['mean_activation'] AS DOUBLE) * part"
    return f"""
WITH {_words_and_spellings(snapshot, "query")},
fired AS (
    SELECT sae, feature_id, count, word, sum({mass}) / (count * mean_activation) AS share,
        first(token ORDER BY {mass} DESC, place) AS matched
    FROM {_met("top_tokens", "mean_activation")}
    GROUP BY sae, feature_id, count, mean_activation, word
),
promoted AS (
    SELECT sae, feature_id, count, word, max({PROMOTED} * part / place) AS share,
        first(token ORDER BY part / place DESC, place) AS matched
    FROM {_met("promoted_tokens", "mean_activation")}
    GROUP BY sae, feature_id, count, word
),
numbers AS (
    SELECT word, count(*) AS n, (SELECT count(*) FROM features) AS of FROM fired GROUP BY word
),
weights AS (
    SELECT word, CASE WHEN n > {COMMON} * of AND min(n) OVER () <= {COMMON} * of THEN 0
        ELSE ln((of + 1) / n) / ln((of + 1) / min(n) OVER ()) END AS weight
    FROM numbers
),
labeled AS (
    SELECT sae, feature_id, NULL::BIGINT AS count, word, max(share) AS share,
        first(text ORDER BY share DESC, text) AS matched
    FROM (
        SELECT sae, feature_id, text, unnest(list_distinct(of)) AS of_label,
            {OF_LABEL} AS share
        FROM (
            -- Taking a text apart takes ten times as long as looking whether it has a word.
            SELECT *, regexp_extract_all(lower(text), '[{LETTER}]+') AS of
            FROM labels SEMI JOIN words ON contains(lower(text), word)
        )
    ) JOIN words ON CASE WHEN prefix THEN starts_with(of_label, word) ELSE of_label = word END
    GROUP BY sae, feature_id, word
),
named AS (
    SELECT sae, feature_id, NULL::BIGINT AS count, query AS word, 1.0 AS share,
        concat(sae, '/', feature_id) AS matched
    FROM (SELECT sae, feature_id FROM features)
    WHERE trim(query) IN (CAST(feature_id AS VARCHAR), concat(sae, '/', feature_id))
),
met AS (
    SELECT sae, feature_id, word,
        sum(coalesce(share * count / (count + {FEW}), share) * coalesce(weight, 1)) AS score,
        first(matched ORDER BY share DESC) AS matched
    FROM (FROM fired UNION ALL FROM promoted UNION ALL FROM labeled UNION ALL FROM named)
        LEFT JOIN weights USING (word)
    GROUP BY sae, feature_id, word
),
scored AS (
    SELECT sae, feature_id, CAST(sum(score) AS FLOAT) AS score,
        string_agg(matched, ' ' ORDER BY score DESC, word) AS matched
    FROM met WHERE score > 0 GROUP BY sae, feature_id
),
best AS (
    SELECT CAST(row_number() OVER (ORDER BY score DESC, sae_index, feature_id) AS INTEGER)
        AS rank, sae, feature_id, score, matched
    FROM scored JOIN (SELECT sae, sae_index FROM saes) USING (sae)
)
SELECT b.rank, b.sae, b.feature_id, b.score, f.density, f.max_activation, b.matched,
    f.top_tokens, f.promoted_tokens, p.label
FROM best AS b JOIN {summaries(snapshot)} AS f USING (sae, feature_id) {LABELS}
WHERE b.rank <= featuredb_k(k)
ORDER BY b.rank"""


def _similar(snapshot: Snapshot) -> str:
    """The query's words that no feature mostly fires on, each with at most three similar ones."""
    return f"""
WITH {_words_and_spellings(snapshot, "$query")},
met AS MATERIALIZED (SELECT DISTINCT unnest(top_tokens)['token'] AS token FROM features),
missed AS (
    SELECT word FROM words WHERE word NOT IN (
        SELECT word FROM spellings SEMI JOIN met USING (token) WHERE part = 1)
),
candidates AS (
    SELECT DISTINCT word, lower(trim(token)) AS other FROM missed, met
    WHERE regexp_full_match(token, '[^{LETTER}][{LETTER}]{{{PIECE},}}')
        AND jaro_winkler_similarity(word, lower(trim(token))) >= {_LIKE}
)
SELECT word, coalesce(list(other ORDER BY jaro_winkler_similarity(word, other) DESC, other)
    FILTER (other IS NOT NULL)[:3], [])
FROM missed LEFT JOIN candidates USING (word)
GROUP BY word ORDER BY word"""


_ABOUT = "features by words of their labels, and that they fire on and promote (queries/search.py)"
QUESTION = Question(
    "search",
    SearchHits,
    "search",
    (
        Macro("search(query, k := 20)", _search, about=_ABOUT),
        *EVIDENCE,
    ),
)
