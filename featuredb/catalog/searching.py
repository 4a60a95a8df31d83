"""Table macro `search`: features by the tokens they fire on and promote.

A word of the query matches a token when the two are equal once spaces around the token and case
are ignored. A feature's score is the share of its firing mass (count times mean activation) that
falls on matching tokens among its `schemas.TOP_TOKENS` most frequent, plus `PROMOTED` divided by
the rank of the first matching token among those it promotes. Features that match nowhere are
left out. Order: score descending, ties by SAE in the snapshot's order, then feature id.
"""

from __future__ import annotations

from featuredb.catalog.near import SUMMARY

PROMOTED = 0.2
"""What the most promoted token weighs against firing on nothing but the word."""


def search_macros() -> list[str]:
    """The macro `search(query, k := 20)`."""
    return [f"CREATE MACRO search(query, k := 20) AS TABLE {_search()}"]


def _search() -> str:
    words = "list_filter(regexp_split_to_array(lower(query), '\\s+'), lambda w: w <> '')"
    spelled = "lower(trim(t['token'], E' \\t\\n\\r'))"
    return f"""
WITH fired AS (
    SELECT sae, feature_id,
        sum(t['count'] * CAST(t['mean_activation'] AS DOUBLE)) AS mass,
        arg_min(t['token'], place) AS token
    FROM (SELECT sae, feature_id, unnest(top_tokens) AS t,
            generate_subscripts(top_tokens, 1) AS place FROM features)
    WHERE list_contains({words}, {spelled})
    GROUP BY sae, feature_id
),
promoted AS (
    SELECT sae, feature_id, min(place) AS place, arg_min(t['token'], place) AS token
    FROM (
        SELECT sae, feature_id, unnest(promoted_tokens) AS t,
            generate_subscripts(promoted_tokens, 1) AS place
        FROM features
    )
    WHERE list_contains({words}, {spelled})
    GROUP BY sae, feature_id
),
scored AS (
    SELECT sae, feature_id, coalesce(f.token, p.token) AS matched,
        CAST(coalesce(f.mass / (s.count * s.mean_activation), 0)
            + coalesce({PROMOTED} / p.place, 0) AS FLOAT) AS score
    FROM fired AS f FULL JOIN promoted AS p USING (sae, feature_id)
    JOIN (SELECT sae, feature_id, count, mean_activation FROM features) AS s
        USING (sae, feature_id)
),
best AS (
    SELECT CAST(row_number() OVER (ORDER BY score DESC, sae_index, feature_id) AS INTEGER)
        AS rank, sae, feature_id, score, matched
    FROM scored JOIN (SELECT sae, sae_index FROM saes) USING (sae)
)
SELECT b.rank, b.sae, b.feature_id, b.score, f.density, f.max_activation, b.matched,
    {SUMMARY.removeprefix("f.density, f.max_activation, ")}
FROM best AS b JOIN features AS f USING (sae, feature_id)
WHERE b.rank <= featuredb_k(k)
ORDER BY b.rank"""
