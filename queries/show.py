"""How several answers show features: the columns they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featuredb.render import numbers
from featuredb.render.view import AnyColumn, Column, Table, TokenColumn
from queries.answers import Row

_LABELED = 20
"""Features that `label_table` has at most."""


def counted(n: int, noun: str) -> str:
    """`2 features`, or `no features`."""
    return numbers.plural(n, noun) if n else f"no {noun}s"


def feature_name(row: Row) -> str:
    """`sae/1234`, as the command line takes it."""
    return f"{row.sae}/{row.feature_id}"


def feature_table(rows: Sequence[Row], columns: Sequence[AnyColumn], most: int = 10) -> Table:
    """Rank and feature, the question's own columns, then the tokens it fires on, `most` of them.

    What it promotes stands on its card, with logits: in many middle layers that is noise.
    """
    return Table(
        [
            Column("", [str(row.rank) for row in rows], right=True, style="dim"),
            Column("feature", [feature_name(row) for row in rows], features=True),
            *columns,
            fires_on(rows, most),
        ]
    )


def fires_on(rows: Sequence[Row], most: int = 10) -> TokenColumn:
    """The labels of the features, where they have any, and the tokens they fire on."""
    return TokenColumn(
        "fires on", [row.top_tokens or [] for row in rows], most, [row.label for row in rows]
    )


def label_column(rows: Sequence[Row]) -> list[Column]:
    """The labels of the features, as the last column of a table. None where there are none."""
    if not any(row.label for row in rows):
        return []
    return [Column("label", [row.label or "" for row in rows], wrap=True)]


def label_table(labels: Mapping[str, str]) -> list[Table]:
    """Features and their labels, under a heading that names them. None where there are none."""
    if not labels:
        return []
    names, texts = (list(each)[:_LABELED] for each in (labels, labels.values()))
    columns = [Column("", names, features=True), Column("", texts, wrap=True)]
    return [Table(columns, more=len(labels) - len(names))]


def score_column(name: str, rows: Sequence[Row], key: str) -> Column:
    """What the rows are ordered by."""
    return Column(name, numbers.aligned([row[key] for row in rows]), right=True, style="bold")


def number_column(name: str, rows: Sequence[Row], key: str) -> Column:
    """Numbers with the decimals that suit the largest."""
    return Column(name, numbers.aligned([row[key] for row in rows]), right=True)


def feature_sizes(rows: Sequence[Row]) -> list[Column]:
    """How often the features fire, and how strongly at most."""
    density = [numbers.density(row.density) for row in rows]
    return [
        Column("density", density, right=True),
        number_column("max", rows, "max_activation"),
    ]
