"""Any rows: columns where they fit side by side, one record under another where they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from featuredb.render import numbers
from featuredb.render.characters import neutralise
from featuredb.render.layout import GAP, Column, grid, line, under, wrap
from featuredb.render.page import Page
from featuredb.render.precision import shortest
from queries.answers import Answer, Row, Rows

_WIDEST_CELL = 48
_LONGEST_NESTED = 160


def draw(answer: Answer, page: Page) -> Iterator[Text]:
    """As many rows as the page shows, and how many more there are."""
    names = [neutralise(name) for name in answer.table.column_names]
    shown = cells(answer, page.rows)
    columns = [
        Column(name, [Text(row[i]) for row in shown], right=is_number(answer, i))
        for i, name in enumerate(names)
    ]
    fits = sum(min(c.width, _WIDEST_CELL) + GAP for c in columns) - GAP <= page.width
    if len(answer) == 1 and any(isinstance(v, str) and v.count("\n") > 1 for v in answer[0]):
        yield from _paragraphs(names, answer[0])  # what EXPLAIN says, or one document
    elif fits:
        for column in columns:
            for text in column.cells:
                text.truncate(_WIDEST_CELL, overflow="ellipsis")
        yield from grid(columns)
    else:
        yield from _records(names, shown, page)
    if not shown:
        yield line(("no rows", "dim"))
    elif len(answer) > page.rows:
        yield line((f"… {len(answer) - page.rows:,} more rows", "dim"))


def cells(answer: Answer, rows: int) -> list[list[str]]:
    """The first rows, every value on one line; a long list or struct is visibly shortened."""
    return [[_cell(value) for value in row] for row in Rows(shortest(answer[:rows].table))]


def _records(names: list[str], rows: list[list[str]], page: Page) -> Iterator[Text]:
    width = max(cell_len(name) for name in names)
    for i, row in enumerate(rows):
        if i:
            yield Text()
        for name, value in zip(names, row, strict=True):
            label = Text(name + " " * (width - cell_len(name)), "dim")
            yield from under([label], wrap(Text(value), max(20, page.width - width - GAP)))


def _paragraphs(names: list[str], row: Row) -> Iterator[Text]:
    for name, value in zip(names, row, strict=True):
        yield line((name, "dim"))
        lines = value.splitlines() if isinstance(value, str) else [_cell(value)]
        yield from (line(neutralise(text)) for text in lines)


def _cell(value: Any) -> str:
    match value:
        case None:
            return numbers.MISSING
        case bool():
            return "true" if value else "false"
        case float():
            return _decimal(value)
        case list() | dict():
            text = neutralise(json.dumps(value, ensure_ascii=False, default=str))
            return text if len(text) <= _LONGEST_NESTED else f"{text[: _LONGEST_NESTED - 1]}…"
        case _:
            return neutralise(str(value))


def _decimal(value: float) -> str:
    if value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.6g}" if not 1e5 <= abs(value) < 1e15 else f"{value:.1f}"


def is_number(answer: Answer, column: int) -> bool:
    """Whether a column is aligned on the right."""
    import pyarrow.types as types

    kind = answer.table.schema.field(column).type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
