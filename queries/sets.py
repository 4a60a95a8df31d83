"""Sets of features in SQL: the macros ``both``, ``without``, ``within`` and ``at_least``."""

from __future__ import annotations

from featuredb.store.names import BAD_LEAST, BAD_UNIT, BAD_WITHIN
from queries.catalog import literals
from queries.question import Macro

_PLACES = {
    "token": "SELECT NULL::BIGINT AS document_id, context_id, token_index, activation FROM {}",
    "context": "SELECT NULL::BIGINT AS document_id, context_id, NULL::INTEGER AS token_index, "
    "max(activation) AS activation FROM {} GROUP BY context_id",
    "document": "SELECT document_id, NULL::BIGINT AS context_id, NULL::INTEGER AS token_index, "
    "max(activation) AS activation FROM {} JOIN contexts USING (context_id) GROUP BY document_id",
}
"""The rows of each unit, from all activations of a feature."""

_KEY = "document_id, context_id, token_index"

_SAME = " AND ".join(f"a.{column} IS NOT DISTINCT FROM b.{column}" for column in _KEY.split(", "))


def _of_unit(feature: str) -> str:
    """SQL text that reads a feature's units. feature: the literal of its name, as SQL."""
    whens = []
    for unit, sql in _PLACES.items():
        before, after = sql.split("{}")
        call = f"{literals.text(before + 'feature_activations(')}, {feature}, "
        whens.append(f"WHEN unit = '{unit}' THEN concat({call}{literals.text(')' + after)})")
    refused = literals.message(BAD_UNIT, unit="unit")
    return f"CASE {' '.join(whens)} ELSE error({refused}) END"


_AT_LEAST = f"""
SELECT {_KEY}, CAST(count(*) AS INTEGER) AS n_features,
    list(feature ORDER BY place) AS features, list(activation ORDER BY place) AS activations
FROM query(list_aggregate(list_transform(CAST(features AS VARCHAR[]), lambda feature, place: concat(
    'SELECT ', place, ' AS place, ', {literals.quoted("feature")}, ' AS feature, * FROM (',
    {_of_unit(literals.quoted("feature"))}, ')')), 'string_agg', ' UNION ALL '))
GROUP BY {_KEY}
HAVING count(*) >= CASE WHEN least BETWEEN 1 AND len(features) THEN least
    ELSE error({literals.message(BAD_LEAST, least="least", n="len(features)")}) END
ORDER BY {_KEY}"""

_REACH = f"""
    CASE WHEN tokens >= 0 AND TRY_CAST(tokens AS BIGINT) = tokens THEN CAST(tokens AS BIGINT)
        ELSE error({literals.message(BAD_WITHIN, within="tokens")}) END"""

_WITHIN = f"""
SELECT a.context_id, a.token_index, any_value(a.activation) AS activation_a,
    max(b.activation) AS activation_b
FROM feature_activations(feature) AS a JOIN feature_activations(other) AS b
    ON a.context_id = b.context_id
    AND b.token_index BETWEEN CASE WHEN in_order THEN a.token_index + 1
        ELSE a.token_index - ({_REACH}) END AND a.token_index + ({_REACH})
GROUP BY a.context_id, a.token_index
ORDER BY a.context_id, a.token_index"""

MACROS = (
    Macro("featuredb_units(feature, unit)", f"FROM query({_of_unit(literals.FEATURE)})"),
    Macro(
        # A word of SQL's own unless it is quoted.
        "\"both\"(feature, other, unit := 'token')",
        f"""
SELECT a.document_id, a.context_id, a.token_index, a.activation AS activation_a,
    b.activation AS activation_b
FROM featuredb_units(feature, unit) AS a JOIN featuredb_units(other, unit) AS b ON {_SAME}
ORDER BY a.document_id, a.context_id, a.token_index""",
        about="tokens, contexts or documents where both fire, with the largest activation of each. "
        'Quote "both", which is a word of SQL',
    ),
    Macro(
        "without(feature, other, unit := 'token')",
        f"""
SELECT a.* FROM featuredb_units(feature, unit) AS a
    ANTI JOIN featuredb_units(other, unit) AS b ON {_SAME}
ORDER BY a.document_id, a.context_id, a.token_index""",
        about="where the first fires and the other does not",
    ),
    Macro(
        "within(feature, other, tokens, in_order := false)",
        _WITHIN,
        about="tokens of the first with the other at most so many tokens away, after it if "
        "in_order",
    ),
    Macro(
        "at_least(features, least, unit := 'token')",
        _AT_LEAST,
        about="where at least so many of a list of features fire",
    ),
)
"""Rows of a token have context_id and token_index, of a context context_id, of a document
document_id. What is not of the unit is null."""
