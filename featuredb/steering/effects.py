"""What features do: when steered with, and when ablated. Written by `measure` and `effect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Column, Heading, Table, TokenColumn, View
from queries.answers import Answer, Row
from queries.connection import Reader
from queries.show import feature_name

_SHOWN = 20


@dataclass(frozen=True, repr=False)
class Measured(Answer):
    """What steering with features does, from the view ``effects``, by SAE and feature id.

    Columns: sae, feature_id, and those of the table ``measured`` in docs/format.md.
    """

    kind: ClassVar[str] = "measured"

    def view(self) -> View:
        """The features with the highest output score."""
        rows = sorted(self, key=lambda row: -(row.output_score or 0))[:_SHOWN]
        heading = Heading("steering with ", f"{len(self):,} features", " · highest output scores")
        columns: list[Column | TokenColumn] = [
            Column("feature", [feature_name(row) for row in rows], features=True),
            _column("output score", rows, "output_score"),
            _column("set to", rows, "strength"),
            _column("KL", rows, "kl"),
            _column("moved", rows, "moved"),
            _column("collateral", rows, "collateral"),
            _column("forecast", rows, "collateral_forecast"),
            TokenColumn("raises", [[t["token"] for t in row.raised_tokens] for row in rows]),
        ]
        return View([[heading], [Table(columns, more=len(self) - len(rows))]])


@dataclass(frozen=True, repr=False)
class Ablated(Answer):
    """What taking features away does where they fire, by SAE and feature id.

    Columns: sae, feature_id, and those of the table ``ablated`` in docs/format.md.
    """

    kind: ClassVar[str] = "ablated"

    def view(self) -> View:
        """The features whose loss changes most, each beside its control."""
        rows = sorted(self, key=lambda row: -row.loss_change)[:_SHOWN]
        heading = Heading("ablating ", numbers.plural(len(self), "feature"), " where they fire")
        columns: list[Column | TokenColumn] = [
            Column("feature", [feature_name(row) for row in rows], features=True),
            Column("loss", [_between(row, "loss_change") for row in rows], right=True),
            Column("control", [_between(row, "control_change") for row in rows], right=True),
            _column("documents", rows, "n_documents"),
            _column("q", rows, "q"),
            TokenColumn("carries", [[t["token"] for t in row.carried_tokens] for row in rows]),
        ]
        return View([[heading], [Table(columns, more=len(self) - len(rows))]])


def _between(row: Row, name: str) -> str:
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if mean is None:
        return "none"
    ends = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{mean:+.3f}{ends}"


def ablated(reader: Reader, features: Sequence[tuple[str, int]] | None = None) -> Ablated:
    """The ablations of some features, (SAE, number) each. None for all there are."""
    return Ablated(_rows(reader, features, "ablated"))


def measured(reader: Reader, features: Sequence[tuple[str, int]] | None = None) -> Measured:
    """The measurements of some features, (SAE, number) each. None for all there are."""
    return Measured(_rows(reader, features, "measured"))


def _rows(reader: Reader, features: Sequence[tuple[str, int]] | None, table: str) -> pa.Table:
    theirs = {
        "measured": ("strength", "lowered_tokens"),
        "ablated": ("n_documents", "carried_tokens"),
    }
    cursor = reader.cursor()
    names = cursor.sql("FROM effects LIMIT 0").columns
    first, last = (names.index(name) for name in theirs[table])
    columns = ", ".join([*names[first : last + 1], f"{table}_by", table])
    wanted = ""
    if features is not None:
        chosen = pa.table(
            {"sae": [f[0] for f in features], "feature_id": [f[1] for f in features]},
            schema=pa.schema([("sae", pa.string()), ("feature_id", pa.int64())]),
        )
        cursor.register("featuredb_chosen", chosen)
        wanted = "SEMI JOIN featuredb_chosen USING (sae, feature_id)"
    return cursor.sql(
        f"SELECT sae, feature_id, {columns} FROM effects {wanted} "
        f"WHERE {table} IS NOT NULL ORDER BY sae, feature_id"
    ).to_arrow_table()


def _column(title: str, rows: Sequence[Row], name: str) -> Column:
    cells = ["" if row[name] is None else numbers.number(row[name]) for row in rows]
    return Column(title, cells, right=True)
