"""Monitors as they are stored: rules by name, with every version that each has had."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.store import user_data
from featuredb.store.snapshot import Snapshot
from featuredb.store.store import Store
from queries.catalog import literals
from queries.rules.alarms_sql import NO_MONITOR, macro_sql
from queries.rules.rule import FeatureRule
from queries.rules.tree import Condition

if TYPE_CHECKING:
    import duckdb

NAME = r"[A-Za-z_][\w.\-]{0,63}"
"""A monitor's name. One that reads like a feature, such as f12, is none."""


@dataclass(frozen=True)
class Monitor:
    """A version of a monitor. state: ``enabled``, ``disabled`` or ``removed``. given: the rule as
    it was written. rate: what set its open number. lost: features whose SAEs the database lacks."""

    name: str
    version: int
    state: str
    rule: FeatureRule
    given: str
    rate: str | None
    owner: str
    note: str
    lost: tuple[str, ...] = ()

    @property
    def enabled(self) -> bool:
        return self.state == "enabled"

    def row(self, snapshot: Snapshot) -> dict[str, Any]:
        """As a row of `schemas.MONITORS`, without author and time."""
        features = []
        for name, number in self.rule.features:
            sae = snapshot.sae(name)
            features.append(
                {"sae": name, "sae_sha256": sae.sha256, "hook": sae.hook, "feature_id": number}
            )
        return {
            "monitor": self.name,
            "version": self.version,
            "state": self.state,
            "rule": self.rule.text,
            "given": self.given,
            "rate": self.rate,
            "owner": self.owner,
            "note": self.note,
            "features": features,
            "tree": msgspec.json.encode(self.rule.tree).decode(),
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any], snapshot: Snapshot) -> Monitor:
        """From a row. An SAE is known by its weights and its hook, whatever it is called now."""
        names = {(sae.sha256, sae.hook): sae.name for sae in snapshot.saes}
        features, lost = [], []
        for each in row["features"]:
            name = names.get((each["sae_sha256"], each["hook"]))
            if name is None:
                lost.append(f"{each['sae']}/{each['feature_id']}")
            features.append((name or each["sae"], each["feature_id"]))
        tree = msgspec.json.decode(row["tree"], type=Condition)
        return cls(
            row["monitor"],
            row["version"],
            row["state"],
            FeatureRule(tree, tuple(features)),
            row["given"],
            row["rate"],
            row["owner"],
            row["note"],
            tuple(lost),
        )

    @property
    def refusal(self) -> str | None:
        """Why it cannot fire: an SAE that it reads is not in the database."""
        if not self.lost:
            return None
        return (
            f"monitor {self.name} reads {', '.join(self.lost)} of an SAE that this database does "
            "not have: add the SAE, or remove the monitor"
        )

    def refuse_lost(self) -> None:
        """Raise `QueryError` where it cannot fire."""
        if self.refusal is not None:
            raise QueryError(self.refusal)


def last_versions(rows: pa.Table, snapshot: Snapshot) -> dict[str, Monitor]:
    """The last version of each monitor by name, those that were removed too."""
    last: dict[str, Mapping[str, Any]] = {}
    for row in rows.to_pylist():
        if row["monitor"] not in last or row["version"] > last[row["monitor"]]["version"]:
            last[row["monitor"]] = row
    return {name: Monitor.of_row(row, snapshot) for name, row in sorted(last.items())}


def monitors_of(store: Store) -> dict[str, Monitor]:
    """The monitors of a database by name."""
    rows = user_data.user_rows(store.files, store.snapshot, user_data.MONITORS)
    return {n: m for n, m in last_versions(rows, store.snapshot).items() if m.state != "removed"}


def no_monitor(name: str, known: Iterable[str]) -> QueryError:
    """The refusal of a name that no monitor has. known: those there are."""
    return QueryError(NO_MONITOR.format(name=name, known=", ".join(known) or "none"))


def monitor_of(store: Store, name: str) -> Monitor:
    """The monitor of that name. Raises `QueryError` listing those there are, or for a lost SAE."""
    found = monitors_of(store)
    if name not in found:
        raise no_monitor(name, found)
    found[name].refuse_lost()
    return found[name]


def alarms_macro(snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> str | None:
    """The body of the macro ``alarms``, None where there is no monitor."""
    found = _not_removed(snapshot, connection)
    if found is None:
        return None
    return macro_sql({m.name: m.refusal or m.rule for m in found}, snapshot)


def alarms_view(snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> str | None:
    """DDL of the view ``alarms``, None where no monitor is enabled."""
    found = _not_removed(snapshot, connection) or []
    calls = [f"FROM alarms({literals.text(m.name)})" for m in found if m.enabled and not m.lost]
    return f"CREATE OR REPLACE VIEW alarms AS {' UNION ALL '.join(calls)}" if calls else None


def _not_removed(snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> list[Monitor] | None:
    """The monitors, None where none was ever made."""
    path = next((d.file.path for d in snapshot.user_data if d.table == "monitors"), None)
    if path is None:
        return None
    rows = connection.sql(f"FROM {literals.file(path)} ORDER BY monitor, version")
    found = last_versions(rows.to_arrow_table(), snapshot).values()
    return [m for m in found if m.state != "removed"]


def listed(names: str | Sequence[str] | None, store: Store) -> list[Monitor]:
    """The monitors of these names, or all that are enabled. Raises `QueryError` for none."""
    if names is None:
        chosen = [m for m in monitors_of(store).values() if m.enabled]
        if not chosen:
            raise QueryError(
                "no monitor is enabled: make one with `featuredb monitor add`, or enable one"
            )
        for each in chosen:
            each.refuse_lost()
        return chosen
    given = [names] if isinstance(names, str) else list(names)
    if not given:
        raise QueryError("there is no monitor: name one, or leave names away for all enabled")
    for name in given:
        if not re.fullmatch(NAME, str(name)):
            raise QueryError(
                f"{name} is no name of a monitor: store a rule with `featuredb monitor add` first"
            )
    return [monitor_of(store, name) for name in dict.fromkeys(given)]
