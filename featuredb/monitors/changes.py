"""Make, change and remove monitors: each change is one more version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.monitors.listed import Monitors, list_monitors
from featuredb.store import schemas
from featuredb.store.snapshot import Snapshot
from featuredb.store.store import Store
from featuredb.store.user_data import MONITORS, replaced, user_rows
from ingest.operations.user_data import (
    Tables,
    change_user_data,
    refuse_no_writing,
    signed,
    user,
)
from queries.arguments import check_choice, check_text
from queries.calibrate import alarm_rate, threshold_for
from queries.connection import Reader
from queries.rules.rule import FeatureRule, parse_rule
from queries.rules.stored import NAME, Monitor, no_monitor

Row = Mapping[str, Any]
Rows = Sequence[Row]

STATES = ("enabled", "disabled", "removed")


def add_monitor(
    path: Path,
    name: str,
    rule: str,
    *,
    note: str = "",
    owner: str | None = None,
    rate: str | None = None,
    where: str | None = None,
    replace_old: bool = False,
) -> Monitors:
    """See `featuredb.add_monitor`."""
    _check_name(name)
    refuse_no_writing(path, "monitor")
    reader = Reader(Store.open(path))
    try:
        found, snapshot = _made(reader, rule, rate, where), reader.snapshot
        notes = _notes(reader, found)
    finally:
        reader.close()
    who = user() if owner is None else owner

    def version(rows: Rows) -> Row:
        old = _last(rows, name)
        if not replace_old:
            _refuse_taken(old, name)
        number = 1 if old is None else old["version"] + 1
        made = Monitor(
            name, number, "enabled", found, rule, rate, who, check_text(note, "the note")
        )
        return made.row(snapshot)

    return _write(path, name, version, notes)


def refuse_name(store: Store, name: str) -> None:
    """Raise `QueryError` where no new monitor can be called so."""
    _check_name(name)
    _refuse_taken(_last(user_rows(store.files, store.snapshot, MONITORS).to_pylist(), name), name)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, check_text(name, "the name")) or re.fullmatch(r"f\d+", name):
        raise QueryError(
            f"{name!r} is no name of a monitor: give letters, digits, _, - and ., beginning with "
            "a letter, and not a feature's name such as f12"
        )


def _refuse_taken(old: Row | None, name: str) -> None:
    if old is not None and old["state"] != "removed":
        raise QueryError(
            f"there is a monitor {name} already: give another name, or replace it by "
            "`featuredb monitor add --replace` (replace=True in Python), which keeps its history"
        )


def set_monitor(path: Path, name: str, state: str) -> Monitors:
    """See `featuredb.set_monitor`."""
    check_choice("state", state, STATES)

    def version(rows: Rows) -> Row:
        old = _last(rows, name)
        if old is None or old["state"] == "removed":
            there = [n for n in dict.fromkeys(row["monitor"] for row in rows)]
            raise no_monitor(
                name, [n for n in there if (_last(rows, n) or {})["state"] != "removed"]
            )
        if old["state"] == state:
            raise QueryError(f"monitor {name} is {state} already")
        return {**old, "version": old["version"] + 1, "state": state}

    return _write(path, name, version)


def _last(rows: Rows, name: str) -> Row | None:
    """The last version of a monitor."""
    own = [row for row in rows if row["monitor"] == name]
    return max(own, key=lambda row: row["version"], default=None)


def _made(reader: Reader, text: str, rate: str | None, where: str | None) -> FeatureRule:
    if rate is None:
        return parse_rule(reader.store, text)
    return threshold_for(reader, text, rate, where)


def _notes(reader: Reader, rule: FeatureRule) -> tuple[str, ...]:
    """What its maker should know."""
    notes = []
    if rule.holds_in_silence:
        notes.append("it can hold where its features are silent, which is nearly everywhere")
    if rule.reads_roles and all(corpus.roles is None for corpus in reader.snapshot.corpora):
        notes.append("no stored text is a chat, so its roles are never met in a replay")
    counted = alarm_rate(reader, rule)
    if not counted.alarms:
        notes.append(f"it never fires on the {counted.tokens:,} tokens stored")
    else:
        notes.append(f"on what is stored: {counted}")
    return tuple(notes)


def _write(
    path: Path,
    name: str,
    version: Callable[[Rows], Row],
    notes: tuple[str, ...] = (),
) -> Monitors:
    columns = [f for f in schemas.MONITORS if f.name not in ("author", "created")]

    def change(_: Snapshot, tables: Tables) -> Tables:
        before = tables[MONITORS.name]
        row = pa.Table.from_pylist([version(before.to_pylist())], schema=pa.schema(columns))
        return {MONITORS.name: replaced(before, signed(row, MONITORS), MONITORS)}

    change_user_data(path, [MONITORS], change, "monitor")
    reader = Reader(Store.open(path))
    try:
        return list_monitors(reader, name, notes)
    finally:
        reader.close()
