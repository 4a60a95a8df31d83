"""The monitors of a database, or every version of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Column, Heading, View
from featuredb.render.view import Table as TableOf
from queries.answers import Answer
from queries.connection import Reader
from queries.rules.stored import no_monitor
from queries.show import label_table


@dataclass(frozen=True, repr=False)
class Monitors(Answer):
    """The monitors of a database by name, or the versions of one, the last first.

    Columns: those of the view ``monitors``: monitor, version i32, state (enabled, disabled or
    removed), rule, given, rate, owner, note, features list<string>, author, created. Then labels
    list<string>: of each of the features the preferred label, or null. notes: what a reader should
    know of the one that was made.
    """

    kind: ClassVar[str] = "monitors"

    of: str | None = None
    notes: tuple[str, ...] = ()

    def view(self) -> View:
        """Their names, states and rules."""
        rows = list(self)
        many = numbers.plural(len(rows), "version" if self.of else "monitor")
        before, name = ("monitor ", self.of) if self.of else ("", many)
        heading = Heading(before, name, f" · {many}" if self.of else "")
        if not rows:
            return View([[Heading("no monitor", "", " · make one with featuredb monitor add")]])
        first = (
            Column("version", [str(r.version) for r in rows], right=True)
            if self.of
            else Column("monitor", [r.monitor for r in rows], style="bold")
        )
        columns = [
            first,
            Column("state", [r.state for r in rows]),
            Column("by", [r.owner for r in rows], style="dim"),
            Column("since", [r.created[:16].replace("T", " ") for r in rows], style="dim"),
            Column("rule", [_about(r.rule, r.note, r.rate) for r in rows], wrap=True),
        ]
        notes = [Heading(f"note: {note}") for note in self.notes]
        pairs = (pair for row in rows for pair in zip(row.features, row.labels, strict=True))
        labels = label_table({feature: label for feature, label in pairs if label})
        return View([part for part in ([heading], [TableOf(columns)], labels, notes) if part])


def _about(rule: str, note: str, rate: str | None) -> str:
    return " · ".join(part for part in (rule, f"rate {rate}" if rate else "", note) if part)


def list_monitors(reader: Reader, name: str | None = None, notes: tuple[str, ...] = ()) -> Monitors:
    """All monitors that are not removed, or every version of one. Raises `QueryError`."""
    if name is None:
        return Monitors(_rows(reader, "FROM monitors", []), notes=notes)
    rows = _rows(reader, "FROM monitor_history WHERE monitor = ? ORDER BY version DESC", [name])
    if not len(rows):
        raise no_monitor(name, _rows(reader, "FROM monitors", []).column("monitor").to_pylist())
    return Monitors(rows, of=name, notes=notes)


def _rows(reader: Reader, sql: str, params: list[str]) -> pa.Table:
    """Of the view, with labels."""
    rows = reader.cursor().sql(sql, params=params).to_arrow_table()
    known = {sae.name: sae for sae in reader.snapshot.saes}

    def label(feature: str) -> str | None:
        sae, _, number = feature.rpartition("/")
        return reader.store.labels.preferred(known[sae], int(number)) if sae in known else None

    labels = [list(map(label, features)) for features in rows.column("features").to_pylist()]
    return rows.append_column("labels", pa.array(labels, pa.list_(pa.string())))
