"""Scalar macros that read a feature's or a context's name, and refuse as the Python API does.

A macro is pasted in wherever it is used and every function of it costs about 20 microseconds to
plan, so a table macro uses `featuredb_row`, which has the errors, once; everywhere else it uses
the short ones, which give some number for a name that `featuredb_row` refuses.
"""

from __future__ import annotations

from featuredb import names
from featuredb.catalog import literals
from featuredb.snapshot import Snapshot

_WHOLE = "CAST(feature AS VARCHAR)"
_NONE = 4_294_967_295
"""Not null: a comparison with null is dropped while planning, and the error with it."""

_NUMBER = f"split_part({_WHOLE}, '/', -1)"


def first_rows(snapshot: Snapshot) -> dict[str, int]:
    """Where each SAE's features begin when all features are counted in the snapshot's order."""
    rows: dict[str, int] = {}
    total = 0
    for sae in snapshot.saes:
        rows[sae.name] = total
        total += sae.d_sae
    return rows


def naming_macros(snapshot: Snapshot) -> list[str]:
    """`featuredb_sae`, `featuredb_id`, the rows and the checks of context, k and window.

    All fold to constants, so that a table macro may choose its file by them.
    """
    saes = snapshot.saes
    firsts = first_rows(snapshot)
    if len(saes) == 1:
        sae, quiet = literals.text(saes[0].name), "CAST(featuredb_id(feature) AS BIGINT)"
    else:
        sae = f"regexp_replace({_WHOLE}, '/[^/]*$', '')"
        listed = "[" + ", ".join(literals.text(s.name) for s in saes) + "]::VARCHAR[]"
        starts = "[" + ", ".join(str(firsts[s.name]) for s in saes) + "]::BIGINT[]"
        where = f"list_position({listed}, featuredb_sae(feature))"
        quiet = f"list_extract({starts}, {where}) + featuredb_id(feature)"
    end = max((c.first_context + c.n_contexts for c in snapshot.corpora), default=0)
    no_context = literals.message(names.NO_CONTEXT, context="context", last=str(end - 1))
    return [
        f"CREATE MACRO featuredb_sae(feature) AS {sae}",
        f"CREATE MACRO featuredb_id(feature) AS coalesce(TRY_CAST({_NUMBER} AS UINTEGER), {_NONE})",
        f"CREATE MACRO featuredb_quiet_row(feature) AS {quiet}",
        f"CREATE MACRO featuredb_plain_row(feature) AS {_plain_row(snapshot)}",
        f"CREATE MACRO featuredb_row(feature) AS {_row(snapshot)}",
        f"CREATE MACRO featuredb_context(context) AS CASE WHEN context >= 0 AND context < {end} "
        f"THEN CAST(context AS BIGINT) ELSE error({no_context}) END",
        "CREATE MACRO featuredb_k(k) AS CASE WHEN k >= 1 THEN CAST(k AS BIGINT) "
        f"ELSE error({literals.message(names.BAD_COUNT, k='k')}) END",
        "CREATE MACRO featuredb_window(size) AS CASE WHEN size >= 0 THEN CAST(size AS BIGINT) "
        f"ELSE error({literals.message(names.BAD_WINDOW, window='size')}) END",
    ]


def _plain_row(snapshot: Snapshot) -> str:
    """The feature's row where it is named in the one way it is shown, else null.

    Planned in a fifth of the time that `featuredb_row` takes, and enough for most questions.
    """
    saes = snapshot.saes
    number = f"TRY_CAST({_NUMBER} AS BIGINT)"
    spelled = f"CAST({number} AS VARCHAR)"
    if len(saes) == 1:
        known = f"{number} BETWEEN 0 AND {saes[0].d_sae - 1}"
        qualified = f"concat({literals.text(saes[0].name + '/')}, {number})"
        return f"CASE WHEN {known} AND {_WHOLE} IN ({spelled}, {qualified}) THEN {number} END"
    firsts = first_rows(snapshot)
    shape = {"name": "VARCHAR", "first": "BIGINT", "last": "BIGINT"}
    listed = literals.records(shape, [[s.name + "/", firsts[s.name], s.d_sae - 1] for s in saes])
    found = f"list_filter({listed}, lambda s: concat(s['name'], {number}) = {_WHOLE})[1]"
    # A list of one element serves as a local variable.
    return (
        f"[CASE WHEN {number} BETWEEN 0 AND s['last'] THEN s['first'] + {number} END "
        f"FOR s IN [{found}]][1]"
    )


def _row(snapshot: Snapshot) -> str:
    """The feature's row among all features, or an error that says what there is instead.

    A list of one element serves as a local variable.
    """
    saes = snapshot.saes
    firsts = first_rows(snapshot)
    shape = {"name": "VARCHAR", "first": "BIGINT", "last": "BIGINT"}
    listed = literals.records(shape, [[s.name, firsts[s.name], s.d_sae - 1] for s in saes])
    known = literals.text(names.sae_names(snapshot))
    example = literals.text(names.example(snapshot))
    alone = literals.text(saes[0].name) if len(saes) == 1 else "NULL"
    # The one SAE for a bare number, else what stands before the last slash.
    part = f"CASE WHEN contains({_WHOLE}, '/') THEN regexp_replace({_WHOLE}, '/[^/]*$', '') " + (
        f"ELSE {alone} END"
    )
    digits = literals.text(names.NUMBER)
    number = f"CASE WHEN regexp_full_match({_NUMBER}, {digits}) THEN CAST({_NUMBER} AS BIGINT) END"
    which = literals.message(names.WHICH_SAE, feature="x['text']", names=known)
    no_sae = literals.message(names.NO_SAE, name="x['part']", names=known)
    refused = literals.message(names.NOT_A_FEATURE, feature="x['text']", example=example)
    missing = literals.message(
        names.NO_FEATURE, number="x['number']", sae="x['sae']['name']", last="x['sae']['last']"
    )
    return (
        f"list_transform(list_transform([{{'text': {_WHOLE}, 'part': {part}, "
        f"'number': {number}}}], lambda x: {{'text': x['text'], 'part': x['part'], "
        f"'number': x['number'], 'sae': list_filter({listed}, lambda s: s['name'] = x['part'])[1]"
        "}), lambda x: CASE WHEN x['number'] BETWEEN 0 AND x['sae']['last'] "
        "THEN x['sae']['first'] + x['number'] ELSE error(CASE "
        f"WHEN x['part'] IS NULL THEN {which} "
        f"WHEN x['sae']['name'] IS NULL THEN {no_sae} "
        f"WHEN x['number'] IS NULL THEN {refused} ELSE {missing} END) END)[1]"
    )
