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
from queries.labels import with_labels
from queries.show import feature_name

_SHOWN = 20


@dataclass(frozen=True, repr=False)
class Measured(Answer):
    """What steering with features does, from the view ``effects``, by SAE and feature id.

    Columns: sae, feature_id, those of the table ``measured`` in docs/format.md, and label string
    (the feature's preferred one, or null).
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
            _tokens("raises", rows, "raised_tokens"),
        ]
        return View([[heading], [Table(columns, more=len(self) - len(rows))]])


@dataclass(frozen=True, repr=False)
class Ablated(Answer):
    """What taking features away does where they fire, by SAE and feature id.

    Columns: sae, feature_id, those of the table ``ablated`` in docs/format.md, and label string
    (the feature's preferred one, or null).
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
            _tokens("carries", rows, "carried_tokens"),
        ]
        return View([[heading], [Table(columns, more=len(self) - len(rows))]])


def _between(row: Row, name: str) -> str:
    """The mean and how far its interval reaches on both sides."""
    mean, high = row[name], row[f"{name}_high"]
    if mean is None:
        return "none"
    return f"{mean:+.3f}" if high is None else f"{mean:+.3f} ±{high - mean:.3f}"


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
    rows = cursor.sql(
        f"SELECT sae, feature_id, {columns} FROM effects {wanted} "
        f"WHERE {table} IS NOT NULL ORDER BY sae, feature_id"
    )
    return with_labels(reader.store, rows.to_arrow_table())


def _tokens(title: str, rows: Sequence[Row], name: str) -> TokenColumn:
    """The labels of the features, where they have any, and some tokens of each."""
    tokens = [[each["token"] for each in row[name]] for row in rows]
    return TokenColumn(title, tokens, titles=[row.label for row in rows])


def _column(title: str, rows: Sequence[Row], name: str) -> Column:
    spelled = numbers.count if name.startswith("n_") else numbers.number
    cells = ["" if row[name] is None else spelled(row[name]) for row in rows]
    return Column(title, cells, right=True)
