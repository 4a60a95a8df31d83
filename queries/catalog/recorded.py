"""The tokens that two SAEs recorded both, in SQL: `featuredb.store.recorded.CommonTokens`."""

from __future__ import annotations

from featuredb.store import names
from featuredb.store.snapshot import Snapshot
from queries.catalog import literals


def common_contexts(snapshot: Snapshot, one: str, other: str) -> str:
    """CTEs `left_out` and `common`, a row per context with at least one common token.

    left_out: context_id, token_index of the sinks of either. common: context_id, document_id,
    token_ids, n (common tokens), skipped (1 where a BOS is left out). one, other: SQL expressions
    of the two SAEs' names.
    """
    return f"""left_out AS (
    SELECT DISTINCT context_id, token_index FROM sinks WHERE sae IN ({one}, {other})
),
common AS (
    SELECT * REPLACE ({_counted(snapshot)} AS n) FROM (
        SELECT c.context_id, c.document_id, c.token_ids, c.n_tokens AS n,
            coalesce(l.sinks, []) AS sinks, {_skipped(snapshot)} AS skipped,
            {_excluded(snapshot, one, other)} AS excluded
        FROM contexts AS c LEFT JOIN (
            SELECT context_id, list(token_index) AS sinks FROM left_out GROUP BY context_id
        ) AS l USING (context_id)
        WHERE {read_by(snapshot, one)} AND {read_by(snapshot, other)}
    ) WHERE {_counted(snapshot)} > 0
)"""


def common_activations(snapshot: Snapshot, feature: str) -> str:
    """The activations of a feature at common tokens. feature: a macro's parameter."""
    return (
        "SELECT f.context_id, f.token_index, f.activation, c.document_id "
        f"FROM feature_activations({feature}) AS f JOIN common AS c USING (context_id) "
        f"{kept(snapshot, 'f')}"
    )


def kept(snapshot: Snapshot, tokens: str) -> str:
    """What leaves only the common ones of some tokens, recorded by one of the two.

    tokens: the relation that has their token_index. Joined to it are their rows of common, as c.
    """
    condition = "TRUE"
    if _excludes(snapshot):
        token = f"CAST(c.token_ids[{tokens}.token_index + 1] AS BIGINT)"
        condition = f"NOT list_contains(c.excluded, {token})"
    return f"ANTI JOIN left_out AS l USING (context_id, token_index) WHERE {condition}"


def _excludes(snapshot: Snapshot) -> bool:
    return any(sae.excluded_tokens for sae in snapshot.saes)


def _counted(snapshot: Snapshot) -> str:
    if not _excludes(snapshot):
        return "n - skipped - len(sinks)"
    return (
        "len(list_filter(token_ids, lambda t, i: i > skipped AND NOT list_contains(sinks, "
        "CAST(i - 1 AS INTEGER)) AND NOT list_contains(excluded, CAST(t AS BIGINT))))"
    )


def _skipped(snapshot: Snapshot) -> str:
    if snapshot.recording.keep_bos:
        return "0"
    ranges = [
        f"c.context_id BETWEEN {c.first_context} AND {c.first_context + c.n_contexts - 1}"
        for c in snapshot.corpora
        if c.bos_token_id is not None
    ]
    return f"CAST({' OR '.join(ranges) or 'false'} AS INTEGER)"


def _excluded(snapshot: Snapshot, one: str, other: str) -> str:
    if not _excludes(snapshot):
        return "[]::BIGINT[]"
    branches = " ".join(
        f"WHEN {literals.text(s.name)} THEN {list(s.excluded_tokens)}::BIGINT[]"
        for s in snapshot.saes
    )
    return f"list_concat(CASE {one} {branches} END, CASE {other} {branches} END)"


def read_by(snapshot: Snapshot, sae: str) -> str:
    """Whether an SAE has read context c."""
    n_contexts = sum(last - first + 1 for first, last in names.context_ranges(snapshot))
    branches, everything = [], True
    for each in snapshot.saes:
        segments = snapshot.segments_of(each.name)
        everything &= n_contexts == sum(s.end_context - s.first_context for s in segments)
        inside = " OR ".join(
            f"c.context_id BETWEEN {s.first_context} AND {s.end_context - 1}" for s in segments
        )
        branches.append(f"WHEN {literals.text(each.name)} THEN {inside or 'false'}")
    return "TRUE" if everything else f"CASE {sae} {' '.join(branches)} END"
