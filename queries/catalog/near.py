"""Table macros over the neighbour graphs: `near`, `near_encoder` and `coactive`."""

from __future__ import annotations

from featuredb.store import schemas
from featuredb.store.snapshot import File, Snapshot
from queries.catalog import literals

TOO_MANY = (
    f"the neighbour graph keeps {schemas.NEIGHBORS_KEPT} per feature, not {{k}}: "
    "for more, ask Database.near or `featuredb near`"
)

_TOKENS = (
    "[t['token'] FOR t IN f.top_tokens] AS top_tokens, "
    "[t['token'] FOR t IN f.promoted_tokens] AS promoted_tokens"
)

SUMMARY = "f.density, f.max_activation, f.top_tokens, f.promoted_tokens"
"""What answers say of a feature besides its name and score, from `summaries(snapshot) AS f`."""


def summaries(snapshot: Snapshot) -> str:
    """A table of `schemas.SUMMARIES`.

    Read in row groups that have the wanted features: decoding those of ``features``, whose lists
    have numbers beside the tokens, takes three times as long.
    """
    file = snapshot.derived.summaries
    if file is not None:
        return literals.file(file.path)
    return f"(SELECT sae, feature_id, density, max_activation, {_TOKENS} FROM features AS f)"


def near_macros(snapshot: Snapshot) -> list[str]:
    """Neighbours by decoder direction, by encoder direction, by co-activation."""
    derived = snapshot.derived
    too_many = f"error({literals.message(TOO_MANY, k='k')})"
    # Beyond the graph co-activation has nothing more to give; the directions have.
    few = f"CASE WHEN k <= {schemas.NEIGHBORS_KEPT} THEN featuredb_k(k) ELSE {too_many} END"
    tables = [
        ("near", derived.neighbors_decoder, few),
        ("near_encoder", derived.neighbors_encoder, few),
        ("coactive", derived.coactivation, "featuredb_k(k)"),
    ]
    return [
        statement
        for name, file, bound in tables
        for statement in _macros(name, file, bound, summaries(snapshot))
    ]


def _macros(name: str, file: File, bound: str, about: str) -> list[str]:
    """A macro, what it calls where the name is spelled as shown, and what it calls where not."""
    spelled = literals.quoted("CAST(feature AS VARCHAR)")
    sae = literals.quoted("featuredb_sae(feature)")
    number = "CAST(featuredb_number(feature) AS BIGINT)"
    found = f"concat('FROM featuredb_{name}_of(', {sae}, ', ', {number}, ', ', {bound}, ')')"
    named = f"concat('FROM featuredb_{name}_named(', {spelled}, ', ', {bound}, ')')"
    return [
        f"CREATE MACRO featuredb_{name}_of(of_sae, id, k) AS TABLE {_near(file, about)}",
        f"CREATE MACRO featuredb_{name}_named(feature, k) AS TABLE "
        f"FROM query(CASE WHEN featuredb_row(feature) >= 0 THEN {found} END)",
        f"CREATE MACRO {name}(feature, k := 20) AS TABLE "
        f"FROM query(CASE WHEN featuredb_plain_row(feature) IS NULL THEN {named} ELSE {found} END)",
    ]


def _near(file: File, about: str) -> str:
    return f"""
WITH nearest AS (
    SELECT rank, neighbor_sae AS sae, neighbor_id AS feature_id, score
    FROM {literals.file(file.path)}
    WHERE sae = of_sae AND feature_id = id AND rank <= k
)
SELECT n.rank, n.sae, n.feature_id, n.score, {SUMMARY}
FROM nearest AS n JOIN {about} AS f USING (sae, feature_id)
ORDER BY n.rank"""
