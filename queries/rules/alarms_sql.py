"""The alarms of a rule in SQL: one row per run of tokens at which it holds."""

from __future__ import annotations

from collections.abc import Mapping

from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.rules.compiled import Compiled
from queries.rules.rule import FeatureRule

_WINDOW = "{window}"

TEXT_TOKENS = 32
"""Most tokens of an alarm that are shown as its text."""


def alarms_sql(rule: FeatureRule, snapshot: Snapshot, monitor: str, window: str) -> str:
    """A SELECT of the columns of `queries.replay.Alarms`, in the order of the texts.

    window: SQL of how many tokens are shown on each side.
    """
    compiled = Compiled(rule, snapshot)
    n = len(rule.features)
    maxima = ", ".join(
        f"max(max_activation) FILTER (sae = {literals.text(sae)} AND feature_id = {number}) AS m{i}"
        for i, (sae, number) in enumerate(rule.features)
    )
    ids = ", ".join(str(number) for _, number in rule.features)
    shares = [f"coalesce(a{i} / m{i}, 0)" for i in range(n)]
    share = f"greatest({', '.join(shares)})" if n > 1 else shares[0]
    which = " ".join(f"WHEN {one} = share THEN {i}" for i, one in enumerate(shares))
    strength = " ".join(f"WHEN {i} THEN a{i}" for i in range(n))
    names = ", ".join(literals.text(sae) for sae, _ in rule.features)
    return f"""
WITH {compiled.held()},
maxima AS (SELECT {maxima} FROM features WHERE feature_id IN ({ids})),
shares AS (SELECT *, {share} AS share FROM held, maxima),
strongest AS (SELECT *, CASE {which} END AS which FROM shares),
runs AS (
    SELECT *, CAST(CASE which {strength} END AS FLOAT) AS strength,
        pos - row_number() OVER (PARTITION BY document_id ORDER BY pos) AS run
    FROM strongest
),
found AS (
    SELECT document_id, min(pos) AS pos, CAST(count(*) AS INTEGER) AS n_tokens,
        max(r.score) AS score, max(share) AS share,
        arg_min({{'which': which, 'strength': strength}}, (-share, pos)) AS best
    FROM runs AS r GROUP BY document_id, run
),
known AS (
    SELECT row_number() OVER (ORDER BY document_id, pos) AS alarm,
        document_id, pos, n_tokens, score,
        CASE WHEN share > 0 THEN best['which'] END AS which,
        CASE WHEN share > 0 THEN best['strength'] END AS strength
    FROM found
),
counted AS (SELECT i, activation, count(*) AS n FROM fired GROUP BY i, activation),
ranked AS (
    SELECT i, activation, sum(n) OVER (PARTITION BY i ORDER BY activation)
        / sum(n) OVER (PARTITION BY i) AS quantile
    FROM counted
),
contexts_of AS (
    SELECT k.*, c.context_id, {compiled.token_index("k")} AS token_index, c.token_ids,
        {compiled.bos("k")} AS bos
    FROM known AS k JOIN contexts AS c ON {compiled.same_context("k")}
),
words AS (
    SELECT alarm, v.text, place - token_index AS place, n_tokens
    FROM (
        SELECT alarm, n_tokens, token_index,
            unnest(token_ids[first + 1:last]) AS token_id,
            first + generate_subscripts(token_ids[first + 1:last], 1) - 1 AS place
        FROM (
            SELECT *, greatest(token_index - {window}, bos) AS first,
                token_index + least(n_tokens, {TEXT_TOKENS}) + {window} AS last
            FROM contexts_of
        )
    ) JOIN vocabulary AS v USING (token_id)
),
texts AS (
    SELECT alarm, coalesce(string_agg(text, '' ORDER BY place) FILTER (place < 0), '') AS before,
        coalesce(string_agg(text, '' ORDER BY place)
            FILTER (place >= 0 AND place < least(n_tokens, {TEXT_TOKENS})), '')
            || CASE WHEN any_value(n_tokens) > {TEXT_TOKENS} THEN '…' ELSE '' END AS text,
        coalesce(string_agg(text, '' ORDER BY place)
            FILTER (place >= least(n_tokens, {TEXT_TOKENS})), '') AS after
    FROM words GROUP BY alarm
)
SELECT {literals.text(monitor)} AS monitor, [{names}][which + 1] AS sae,
    CAST([{ids}][which + 1] AS BIGINT) AS feature_id, context_id, document_id, token_index,
    n_tokens, strength, CAST(quantile AS DOUBLE) AS quantile, score, before, text, after
FROM contexts_of LEFT JOIN ranked ON i = which AND activation = strength JOIN texts USING (alarm)
ORDER BY document_id, pos"""


def macro_sql(rules: Mapping[str, FeatureRule], snapshot: Snapshot) -> str:
    """The body of the macro ``alarms``, for monitors by name."""
    known = ", ".join(rules) or "none"
    missing = literals.message(
        f"there is no monitor {{name}}: there are {known.replace('{', '').replace('}', '')}",
        name="name",
    )
    whens = " ".join(
        f"WHEN {literals.text(name)} "
        f"THEN {literals.text(alarms_sql(rule, snapshot, name, _WINDOW))}"
        for name, rule in rules.items()
    )
    chosen = f"CASE name {whens} ELSE error({missing}) END" if rules else f"error({missing})"
    size = "CAST(featuredb_window(window_size) AS VARCHAR)"
    return f"FROM query(replace({chosen}, {literals.text(_WINDOW)}, {size}))"
