"""The contrast of two sets of stored documents in SQL: the figures of `two_sets` and `scores`."""

from __future__ import annotations

from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.catalog.summaries import LABELS, summaries
from queries.contrasts.scores import FEWEST, SHARE
from queries.question import Macro
from queries.tails import Z95

_A, _B, _K, _LEAST = "@a@", "@b@", "@k@", "@least@"
"""Where the statement has the macro's arguments."""

# The standard normal value that exceeds 0.05 / m in the two tails, by halving the step 50 times.
_DEVIATE = (
    "list_reduce(list_prepend(0.0::DOUBLE, list_transform(range(1, 51), "
    "lambda i: 16.0::DOUBLE / (1::BIGINT << i))), lambda x, step: "
    "CASE WHEN featuredb_p_value((x + step) * (x + step)) > 0.05 / tests THEN x + step ELSE x END)"
)


def _ln_choose(n: str, k: str) -> str:
    """0 where k of n cannot be chosen."""
    chosen = f"lgamma({n} + 1) - lgamma(({k}) + 1) - lgamma({n} - ({k}) + 1)"
    return f"CASE WHEN ({k}) BETWEEN 0 AND {n} THEN {chosen} ELSE 0 END"


_SILENT = "(n - in_a - in_b)"
_SAFE = f"""greatest(featuredb_p_value(evidence * evidence), least(1, 2 * exp(
    CASE WHEN u > n_a * n_b / 2 THEN {_ln_choose(_SILENT, f"n_a - (n - {_SILENT} - negative)")}
    ELSE {_ln_choose(_SILENT, "n_a - negative")} END - ({_ln_choose("n", "n_a")}))))"""
"""p after the correction for skewness, and no less than `two_sets.Difference.least_p`."""

_STATEMENT = f"""
WITH sided AS MATERIALIZED (
    SELECT document_id, CASE WHEN ({_A}
) THEN 1 WHEN ({_B}
) THEN 2 END AS side FROM documents WHERE n_tokens > 0
),
sizes AS (
    SELECT CAST(CASE WHEN count(*) FILTER (side = 1) = 0
            THEN error('A is empty: no document satisfies it') ELSE count(*) FILTER (side = 1) END
            AS DOUBLE) AS n_a,
        CAST(CASE WHEN count(*) FILTER (side = 2) = 0
            THEN error('B is empty: no document that is not in A satisfies it')
            ELSE count(*) FILTER (side = 2) END AS DOUBLE) AS n_b
    FROM sided
),
pairs AS (
    SELECT sae, feature_id, max_activation + 0.0::FLOAT AS value, side
    FROM document_features JOIN sided USING (document_id) WHERE side IS NOT NULL
),
active AS (
    SELECT sae, feature_id, CAST(count(*) FILTER (side = 1) AS DOUBLE) AS in_a,
        CAST(count(*) FILTER (side = 2) AS DOUBLE) AS in_b
    FROM pairs GROUP BY ALL
),
runs AS (
    SELECT sae, feature_id, value, sum(a) AS a, sum(b) AS b
    FROM (
        SELECT sae, feature_id, value, CAST(count(*) FILTER (side = 1) AS DOUBLE) AS a,
            CAST(count(*) FILTER (side = 2) AS DOUBLE) AS b
        FROM pairs GROUP BY ALL
        UNION ALL SELECT sae, feature_id, 0, n_a - in_a, n_b - in_b FROM active, sizes
    )
    GROUP BY ALL
),
ranked AS (
    SELECT *, sum(a) OVER below - a AS below_a, sum(b) OVER below - b AS below_b, a + b AS ties
    FROM runs, sizes
    WINDOW below AS (PARTITION BY sae, feature_id ORDER BY value
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),
summed AS (
    SELECT sae, feature_id, n_a, n_b, n_a + n_b AS n, sum(a * (below_b + b / 2)) AS u,
        sum(a * ((below_b + b / 2) / n_b) ** 2) AS wins_a,
        sum(b * ((n_a - below_a - a / 2) / n_a) ** 2) AS wins_b,
        sum(ties ** 3 - ties) AS tied,
        sum(CASE WHEN value < 0 THEN ties ELSE 0 END) AS negative,
        sum(ties * (below_a + below_b + (ties + 1) / 2 - (n_a + n_b + 1) / 2) ** 3) AS cubed
    FROM ranked GROUP BY ALL
),
moments AS (
    SELECT *, u / (n_a * n_b) AS auroc, n_a * n_b / 12 * (n + 1 - tied / (n * (n - 1))) AS variance,
        CASE WHEN n < 3 THEN 0
            ELSE n_a * n_b * (n_b - n_a) / (n * (n - 1) * (n - 2)) * cubed END AS third
    FROM summed
),
tested AS (
    SELECT m.*, in_a, in_b, CASE WHEN variance > 0 THEN sign(u - n_a * n_b / 2)
            * greatest(abs(u - n_a * n_b / 2) - 0.5, 0) / sqrt(variance) ELSE 0 END AS z,
        CASE WHEN variance > 0 THEN third / variance ** 1.5 ELSE 0 END AS skew
    FROM moments AS m JOIN active USING (sae, feature_id)
    WHERE in_a + in_b >= CASE WHEN {_LEAST} IS NOT NULL THEN greatest(1, {_LEAST} * n)
        ELSE greatest({FEWEST}, {SHARE} * least(n_a, n_b)) END
),
corrected AS (
    SELECT *, CASE WHEN abs(skew) < 1e-6 THEN z
        ELSE 6 / skew * (cbrt(greatest(skew * z / 2 + 1, 0)) - 1) + skew / 6 END AS u2
    FROM tested
),
evident AS (
    SELECT *, featuredb_p_value(z * z) AS p, {_SAFE} AS safe,
        count(*) OVER () AS tests, in_a + 0.5 AS a, in_b + 0.5 AS b, n_a - in_a + 0.5 AS c,
        n_b - in_b + 0.5 AS d
    FROM (SELECT *, CASE WHEN sign(u2) <> sign(z) THEN 0 WHEN abs(u2) < abs(z) THEN u2 ELSE z END
        AS evidence FROM corrected)
),
adjusted AS (
    SELECT *, least(1, min(safe * tests / place) OVER (ORDER BY place DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) AS q
    FROM (SELECT *, row_number() OVER (ORDER BY safe, sae, feature_id) AS place FROM evident)
),
best AS (
    SELECT CAST(row_number() OVER (ORDER BY round(abs(evidence), 9) DESC, sae_index, feature_id)
        AS INTEGER) AS rank, e.*, ln(a * d / (b * c)) AS log_odds,
        sqrt(1 / a + 1 / b + 1 / c + 1 / d) AS error,
        CASE WHEN n_a > 1 AND n_b > 1 THEN {Z95} * sqrt(
            greatest((wins_a - n_a * auroc ** 2) / (n_a - 1), 0) / n_a
            + greatest((wins_b - n_b * auroc ** 2) / (n_b - 1), 0) / n_b) END AS half
    FROM adjusted AS e JOIN (SELECT sae, sae_index FROM saes) USING (sae)
    QUALIFY rank <= featuredb_k({_K})
)
SELECT rank, b.sae, CAST(b.feature_id AS BIGINT) AS feature_id, in_a / n_a AS share_a,
    in_b / n_b AS share_b, in_a / n_a - in_b / n_b AS difference, log_odds,
    sign(log_odds) * greatest(abs(log_odds) - {_DEVIATE} * error, 0) AS log_odds_low, auroc,
    -- Of a null and a number, greatest is the number.
    CASE WHEN half >= 0 THEN greatest(auroc - half, 0) END AS auroc_low,
    CASE WHEN half >= 0 THEN least(auroc + half, 1) END AS auroc_high, p, q,
    f.top_tokens, p.label
FROM best AS b JOIN @summaries@ AS f
    ON f.sae = b.sae AND f.feature_id = CAST(b.feature_id AS BIGINT)
@labels@
ORDER BY rank"""


def _contrast(snapshot: Snapshot) -> str:
    joined = _STATEMENT.replace("@summaries@", summaries(snapshot)).replace("@labels@", LABELS)
    statement = literals.text(joined)
    for place, argument in (
        (_A, "CAST(a AS VARCHAR)"),
        (_B, "coalesce(CAST(b AS VARCHAR), 'true')"),
        (_K, "CAST(k AS VARCHAR)"),
        (_LEAST, "coalesce(CAST(min_share AS VARCHAR), 'NULL')"),
    ):
        statement = statement.replace(place, f"', {argument}, '")
    return f"FROM query(concat({statement}))"


MACROS = (
    Macro(
        "contrast(a, b := NULL, k := 20, min_share := NULL)",
        _contrast,
        about="features that tell the documents for which condition a holds from those for which b "
        "does, by default all others: shares, log odds, AUROC, p and q per document",
    ),
)
