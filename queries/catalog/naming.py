"""Scalar macros that read a feature's or a context's name, and refuse as the Python API does.

A macro is pasted in wherever it is used, and what is pasted costs time to plan: about 20
microseconds for a function, several hundred for one that is a macro itself (``nullif``,
``array_to_string``) and for a list's ``[1]``. So a table macro reads a name by
`featuredb_plain_row`, which gives null for any that is not spelled as names are shown, and only
where it does goes another way, by `featuredb_row`, which has the errors.
"""

from __future__ import annotations

import re

from featuredb.store import names
from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.question import Macro

_WHOLE = "CAST(feature AS VARCHAR)"
_OFFSET = literals.name("offset")
_NUMBER = f"split_part({_WHOLE}, '/', -1)"


def first_rows(snapshot: Snapshot) -> dict[str, int]:
    """Where each SAE's features begin when all features are counted in the snapshot's order."""
    rows: dict[str, int] = {}
    total = 0
    for sae in snapshot.saes:
        rows[sae.name] = total
        total += sae.d_sae
    return rows


def naming_macros(snapshot: Snapshot) -> list[Macro]:
    """`featuredb_sae`, `featuredb_number`, the rows and the checks of context, k and window.

    All fold to constants, so that a table macro may choose its file by them.
    """
    saes = snapshot.saes
    alone = len(saes) == 1
    sae = literals.text(saes[0].name) if alone else f"regexp_replace({_WHOLE}, '/[^/]*$', '')"
    known = " OR ".join(
        f"context BETWEEN {first} AND {last}" for first, last in names.context_ranges(snapshot)
    )
    spans = literals.text(names.context_spans(snapshot))
    no_context = literals.message(names.NO_CONTEXT, context="context", spans=spans)
    bodies = {
        "featuredb_sae(feature)": sae,
        "featuredb_number(feature)": _NUMBER,
        "featuredb_plain_row(feature)": _plain_row(snapshot),
        "featuredb_row(feature)": _row(snapshot),
        "featuredb_context(context)": f"CASE WHEN {known or 'false'} "
        f"THEN CAST(context AS BIGINT) ELSE error({no_context}) END",
        "featuredb_k(k)": "CASE WHEN k >= 1 AND TRY_CAST(k AS BIGINT) = k "
        f"THEN TRY_CAST(k AS BIGINT) ELSE error({literals.message(names.BAD_COUNT, k='k')}) END",
        f"featuredb_offset({_OFFSET})": f"CASE WHEN {_OFFSET} >= 0 "
        f"AND TRY_CAST({_OFFSET} AS BIGINT) = {_OFFSET} THEN TRY_CAST({_OFFSET} AS BIGINT) "
        f"ELSE error({literals.message(names.BAD_OFFSET, offset=_OFFSET)}) END",
        "featuredb_seed(seed)": "CASE WHEN seed >= 0 "
        "AND TRY_CAST(seed AS BIGINT) = seed THEN TRY_CAST(seed AS BIGINT) "
        f"ELSE error({literals.message(names.BAD_SEED, seed='seed')}) END",
        # No context is as long as 2^30 tokens. A token's index may be added to that as an INTEGER.
        "featuredb_window(size)": "CASE WHEN size >= 0 "
        "AND TRY_CAST(size AS BIGINT) = size THEN least(TRY_CAST(size AS BIGINT), 1073741824) "
        f"ELSE error({literals.message(names.BAD_WINDOW, window='size')}) END",
    }
    return [Macro(signature, body, table=False) for signature, body in bodies.items()]


def _plain_row(snapshot: Snapshot) -> str:
    """The feature's row where it is named in the one way it is shown, else null."""
    saes = snapshot.saes
    if len(saes) == 1:
        # Ten digits hold every uint32 and fit a BIGINT.
        pattern = literals.text(f"^(?:{re.escape(saes[0].name)}/)?(0|[1-9][0-9]{{0,9}})$")
        number = f"TRY_CAST(regexp_extract({_WHOLE}, {pattern}, 1) AS BIGINT)"
        return f"CASE WHEN {number} < {saes[0].d_sae} THEN {number} END"
    number = f"TRY_CAST({_NUMBER} AS BIGINT)"
    firsts = first_rows(snapshot)
    shape = {"name": "VARCHAR", "first": "BIGINT", "last": "BIGINT"}
    listed = literals.records(shape, [[s.name + "/", firsts[s.name], s.d_sae - 1] for s in saes])
    held = f"concat(s['name'], {number}) = {_WHOLE} AND {number} BETWEEN 0 AND s['last']"
    matches = f"list_filter({listed}, lambda s: {held})"
    return f"list_first(list_transform({matches}, lambda s: s['first'])) + {number}"


def _row(snapshot: Snapshot) -> str:
    """The feature's row among all features, or an error that says what exists instead.

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
