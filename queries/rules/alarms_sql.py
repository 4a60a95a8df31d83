"""The alarms of a rule in SQL: one row per run of tokens at which it holds."""

from __future__ import annotations

from collections.abc import Mapping

from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.rules.compiled import Compiled
from queries.rules.rule import FeatureRule

_WINDOW = "{window}"

NO_MONITOR = "there is no monitor {name}: there are {known}"

TEXT_TOKENS = 32
"""Most tokens of an alarm that are shown as its text."""


def alarms_sql(rule: FeatureRule, snapshot: Snapshot, monitor: str, window: str) -> str:
    """A SELECT of the columns of `queries.replay.Alarms`, in the order of the texts.

    window: SQL of how many tokens are shown on each side.
    """
    ids = _ids(rule)
    return f"""
WITH alarms AS MATERIALIZED ({places_sql(rule, snapshot, monitor, window)}
),
numbered AS (SELECT row_number() OVER () AS alarm, * FROM alarms),
words AS (
    SELECT alarm, v.text, place
    FROM (
        SELECT alarm, unnest(token_ids[first + 1:stop]) AS token_id,
            generate_subscripts(token_ids[first + 1:stop], 1) AS place
        FROM numbered JOIN contexts USING (context_id)
    ) JOIN vocabulary AS v USING (token_id)
),
texts AS (SELECT alarm, list(text ORDER BY place) AS words FROM words GROUP BY alarm)
SELECT monitor, sae, feature_id, context_id, document_id, token_index, n_tokens, strength, quantile,
    score, array_to_string(words[:token_index - first], '') AS before,
    array_to_string(words[token_index - first + 1:token_index - first + shown], '')
        || CASE WHEN n_tokens > shown THEN '…' ELSE '' END AS text,
    array_to_string(words[token_index - first + shown + 1:], '') AS after, label
FROM (SELECT *, least(n_tokens, {TEXT_TOKENS}) AS shown FROM numbered) JOIN texts USING (alarm)
LEFT JOIN (
    SELECT sae, feature_id, text AS label FROM labels WHERE preferred AND feature_id IN ({ids})
) USING (sae, feature_id)
ORDER BY alarm"""


def places_sql(rule: FeatureRule, snapshot: Snapshot, monitor: str, window: str) -> str:
    """A SELECT of the same without the texts, and first and stop: the tokens of the context that
    the texts are of."""
    compiled = Compiled(rule, snapshot)
    n = len(rule.features)
    maxima = ", ".join(
        f"max(max_activation) FILTER (sae = {literals.text(sae)} AND feature_id = {number}) AS m{i}"
        for i, (sae, number) in enumerate(rule.features)
    )
    ids = _ids(rule)
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
    SELECT document_id, pos, n_tokens, score,
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
    SELECT k.*, c.context_id, c.n_tokens AS size, {compiled.token_index("k")} AS token_index,
        {compiled.bos("k")} AS bos
    FROM known AS k JOIN contexts AS c ON {compiled.same_context("k")}
)
SELECT {literals.text(monitor)} AS monitor, [{names}][which + 1] AS sae,
    CAST([{ids}][which + 1] AS BIGINT) AS feature_id, context_id, document_id, token_index,
    n_tokens, strength, CAST(quantile AS DOUBLE) AS quantile, score,
    greatest(token_index - {window}, bos) AS first,
    least(token_index + least(n_tokens, {TEXT_TOKENS}) + {window}, size) AS stop
FROM contexts_of LEFT JOIN ranked ON i = which AND activation = strength
ORDER BY document_id, pos"""


def _ids(rule: FeatureRule) -> str:
    return ", ".join(str(number) for _, number in rule.features)


def beginnings_sql(rule: FeatureRule, snapshot: Snapshot) -> str:
    """A SELECT of (context_id, document_id) of each alarm's first token, in no order."""
    compiled = Compiled(rule, snapshot)
    return f"""
WITH {compiled.held()},
begun AS (
    SELECT document_id, pos, lag(pos) OVER (PARTITION BY document_id ORDER BY pos) AS before
    FROM held
)
SELECT c.context_id, c.document_id
FROM begun AS b JOIN contexts AS c ON {compiled.same_context("b")}
WHERE before IS NULL OR before < pos - 1"""


def macro_sql(rules: Mapping[str, FeatureRule | str], snapshot: Snapshot) -> str:
    """The body of the macro ``alarms``, for monitors by name: their rules, or why they cannot
    fire."""
    known = literals.text(", ".join(rules) or "none")
    broken = {name: rule for name, rule in rules.items() if isinstance(rule, str)}
    calls = {
        name: alarms_sql(rule, snapshot, name, _WINDOW)
        for name, rule in rules.items()
        if not isinstance(rule, str)
    }
    reason = _by_name(broken, literals.message(NO_MONITOR, name="name", known=known))
    chosen = _by_name(calls, f"error({reason})::VARCHAR")
    size = "CAST(featuredb_window(window_size) AS VARCHAR)"
    return f"FROM query(replace({chosen}, {literals.text(_WINDOW)}, {size}))"


def _by_name(texts: Mapping[str, str], otherwise: str) -> str:
    """The text of a monitor's name as SQL."""
    whens = " ".join(f"WHEN {literals.text(n)} THEN {literals.text(t)}" for n, t in texts.items())
    return f"CASE name {whens} ELSE {otherwise} END" if whens else otherwise
