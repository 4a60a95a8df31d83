"""Views as text, for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import IO, Any

from rich.cells import cell_len
from rich.text import Text

from featuredb.render import numbers, values
from featuredb.render.bars import bar, histogram_rows, sparkline
from featuredb.render.characters import label, neutralize
from featuredb.render.layout import GAP, Cells, beside, grid, line, under, wrap
from featuredb.render.page import Page, page_for
from featuredb.render.values import is_nested, spell, title
from featuredb.render.view import (
    AnyColumn,
    BarColumn,
    Bars,
    Column,
    CourseColumn,
    Facts,
    Group,
    Heading,
    Part,
    Passage,
    Passages,
    PlaceColumn,
    Records,
    Shown,
    Table,
    TokenColumn,
)

_INDENT = "  "
_WIDEST_CELL = 48
_NARROWEST_TOKENS = 18
_NARROWEST_PROSE = 20
_NARROWEST_BLOCK = 46


def to_text(answer: Shown, page: Page | None = None) -> str:
    """The answer as text, without a newline at its end."""
    page = page or Page()
    return page.text(_sections(answer, page)).rstrip("\n")


def write(answer: Shown, stream: IO[str]) -> None:
    """Write the answer to a stream, in the colors and the width the stream has."""
    stream.write(to_text(answer, page_for(stream)) + "\n")


def _sections(answer: Shown, page: Page) -> Iterator[Text]:
    for i, parts in enumerate(answer.view()):
        if i:
            yield Text()
        for part in parts:
            yield from _part(part, page)


def _part(part: Part, page: Page) -> Iterator[Text]:
    match part:
        case Heading():
            yield line(
                (neutralize(part.before), "dim"),
                (neutralize(part.subject), "bold"),
                (neutralize(part.after), "dim"),
            )
        case Facts():
            yield from _facts(part.data, page, depth=0)
        case Table():
            yield from _table(part, page)
        case Records():
            yield from _records(part, page)
        case Passages():
            yield from _passages(part, page)
        case Bars():
            yield from _bars(part, page)
        case Group():
            yield from _group(part, page)


def _facts(data: Mapping[str, Any], page: Page, depth: int) -> Iterator[Text]:
    """Values first, then each nested part under its name."""
    indent = _INDENT * depth
    flat = {name: value for name, value in data.items() if not is_nested(value)}
    width = max((cell_len(title(name)) for name in flat), default=0)
    room = max(20, page.width - len(indent) - width - GAP)
    for name, value in flat.items():
        heading = f"{indent}{title(name)}" + " " * (width - cell_len(title(name)))
        yield from under([Text(heading, "dim")], wrap(Text(spell(name, value)), room))
    for name, value in data.items():
        if not is_nested(value):
            continue
        if depth == 0:
            yield Text()
        yield line(indent, (title(name), "bold"))
        for i, part in enumerate([value] if isinstance(value, Mapping) else value):
            if i:
                yield Text()
            yield from _facts(part, page, depth + 1)


def _table(table: Table, page: Page) -> Iterator[Text]:
    """Columns side by side. Token lists get a separate line if they do not fit."""
    lists = [column for column in table.columns if isinstance(column, TokenColumn)]
    others = _fitting([c for c in table.columns if not isinstance(c, TokenColumn)], page)
    if any(isinstance(column, Column) and column.wrap for column in table.columns):
        yield from _with_prose(others, page)
    elif not lists:
        yield from grid(others)
    else:
        left = page.width - sum(cells.width + GAP for cells in others)
        room = (left - GAP * (len(lists) - 1)) // len(lists)
        if room >= _NARROWEST_TOKENS:
            shown = [Cells(c.heading, _tokens(c, page, room)) for c in lists]
            yield from grid([*others, *shown])
        else:
            yield from _stacked(others, lists, page)
    if table.more:
        yield line((f"… {table.more:,} more", "dim"))


def _fitting(columns: Sequence[AnyColumn], page: Page) -> list[Cells]:
    """The columns, on a narrow page without bars and courses, then without the last ones."""
    cells = [_cells(column, page) for column in columns]
    if any(isinstance(column, Column) and column.wrap for column in columns):
        return cells

    def too_wide() -> bool:
        return sum(each.width + GAP for each in cells) - GAP > page.width

    if too_wide():
        kept = [not isinstance(column, BarColumn | CourseColumn) for column in columns]
        cells = [each for each, keep in zip(cells, kept, strict=True) if keep]
    while too_wide() and len(cells) > _LEAST_COLUMNS:
        cells.pop()
    return cells


_LEAST_COLUMNS = 3
"""What a row is, and one number."""


def _with_prose(columns: list[Cells], page: Page) -> Iterator[Text]:
    """The last column broken to what the others leave, or below them where that is too little.

    Without names there is no heading.
    """
    *before, prose = columns
    heading = any(column.name for column in columns)
    labels = grid(before, heading=heading)
    cells = [Text(prose.name, "dim")] * heading + prose.cells
    room = page.width - (labels[0].cell_len + GAP if labels else 0)
    for i, cell in enumerate(cells):
        if room >= _NARROWEST_PROSE:
            yield from under(labels[i : i + 1], wrap(cell, room))
        else:
            yield from labels[i : i + 1]
            yield from under([Text()], wrap(cell, page.width - GAP))


def _stacked(others: list[Cells], lists: list[TokenColumn], page: Page) -> Iterator[Text]:
    heading, *rows = grid(others)
    indent = " " * (others[0].width + GAP)
    names = sum(len(column.name) + 1 for column in lists)
    room = (page.width - len(indent) - names - GAP * (len(lists) - 1)) // len(lists)
    yield heading
    for i, row in enumerate(rows):
        yield row
        text = line(indent)
        for j, column in enumerate(lists):
            tokens = _tokens(column, page, room)[i]
            text.append(" " * GAP if j else "").append(f"{column.name} ", "dim")
            text.append_text(tokens).append(" " * (room - tokens.cell_len))
        yield text


def _tokens(column: TokenColumn, page: Page, room: int | None = None) -> list[Text]:
    """The titles and tokens of each row, as far as they fit."""
    shown = []
    for name, tokens in zip_longest(column.titles[: len(column.cells)], column.cells):
        if not name:
            shown.append(page.tokens(tokens, room) if room is not None else page.tokens(tokens))
            continue
        text = Text(neutralize(name), "bold")
        if room is None:
            shown.append(text.append("  ").append_text(page.tokens(tokens)))
            continue
        text.truncate(room, overflow="ellipsis")
        left = room - text.cell_len - GAP
        some = page.tokens(tokens, left)
        if some.cell_len <= left:
            text.append(" " * GAP).append_text(some)
        shown.append(text)
    return shown


def _cells(column: AnyColumn, page: Page) -> Cells:
    match column:
        case Column():
            cells = [Text(neutralize(cell), column.style) for cell in column.cells]
            return Cells(column.name, cells, right=column.right)
        case PlaceColumn():
            pairs = zip(column.tokens, column.indexes, strict=True)
            return Cells(
                column.name,
                [Text.assemble(label(token), (f" @{index}", "dim")) for token, index in pairs],
            )
        case CourseColumn():
            return Cells(column.name, [page.bars(sparkline(row)) for row in column.activations])
        case BarColumn():
            return Cells(column.name, [page.bars(bar(share)) for share in column.shares])
        case TokenColumn():
            return Cells(column.heading, _tokens(column, page))


def _records(records: Records, page: Page) -> Iterator[Text]:
    """As many rows as the page shows, and how many more there are."""
    table = records.table
    names = [neutralize(name) for name in table.column_names]
    shown = values.cells(table, page.rows)
    columns = [
        Cells(name, [Text(row[i]) for row in shown], right=values.is_number(table, i))
        for i, name in enumerate(names)
    ]
    fits = sum(min(c.width, _WIDEST_CELL) + GAP for c in columns) - GAP <= page.width
    only = [c.to_pylist()[0] for c in table.columns] if table.num_rows == 1 else []
    if any(isinstance(value, str) and value.count("\n") > 1 for value in only):
        yield from _paragraphs(names, only)  # the output of EXPLAIN, or one document
    elif fits:
        for column in columns:
            for text in column.cells:
                text.truncate(_WIDEST_CELL, overflow="ellipsis")
        yield from grid(columns)
    else:
        width = max(cell_len(name) for name in names)
        room = max(20, page.width - width - GAP)
        for i, row in enumerate(shown):
            if i:
                yield Text()
            for name, value in zip(names, row, strict=True):
                heading = Text(name + " " * (width - cell_len(name)), "dim")
                yield from under([heading], wrap(Text(value), room))
    if not shown:
        yield line(("no rows", "dim"))
    elif table.num_rows > page.rows:
        yield line((f"… {table.num_rows - page.rows:,} more rows", "dim"))


def _paragraphs(names: list[str], row: list[Any]) -> Iterator[Text]:
    for name, value in zip(names, row, strict=True):
        yield line((name, "dim"))
        lines = value.splitlines() if isinstance(value, str) else [values.cell(value)]
        yield from (line(neutralize(text)) for text in lines)


def _passages(passages: Passages, page: Page) -> Iterator[Text]:
    """Rank and value, aligned over all passages, then their source and the text."""
    items = passages.items
    names: list[list[Text]] = [[] for _ in items]
    if any(item.rank for item in items):
        names = [[Text(item.rank, "dim")] for item in items]
    if any(item.value is not None for item in items):
        shown = numbers.aligned([item.value for item in items])
        names = [[*name, Text(value, "bold")] for name, value in zip(names, shown, strict=True)]
    labels = grid(
        [Cells("", list(column), right=True) for column in zip(*names, strict=True)], heading=False
    )
    indent = labels[0].cell_len + GAP if labels else 0
    for i, item in enumerate(items):
        yield from under(
            labels[i : i + 1], _passage(item, passages.scale, page, page.width - indent)
        )


def _passage(passage: Passage, scale: float, page: Page, room: int) -> Iterator[Text]:
    if passage.about:
        about = Text(neutralize(passage.about), "dim")
        about.truncate(room, overflow="ellipsis")
        yield about
    lead = "…" if passage.inside else ""
    if lead and not passage.tokens[0].startswith(" "):
        lead += " "
    window = page.window(
        passage.tokens, passage.activations, scale, peak=passage.peak, faint=passage.faint
    )
    yield from wrap(Text.assemble((lead, "dim"), window), room)


def _bars(bars: Bars, page: Page) -> Iterator[Text]:
    """Counts up the left side, values along the foot: both ends and halfway."""
    yield line((bars.title, "dim"))
    rows = histogram_rows(bars.counts) if any(bars.counts) else []
    most = numbers.count(max(bars.counts, default=0))
    for i, row in enumerate(rows):
        mark = most if i == 0 else "1" if i == len(rows) - 1 else ""
        yield line((mark.rjust(len(most)) + " ", "dim"), page.bars(row))
    low, high = numbers.number(bars.low), numbers.number(bars.high)
    middle = numbers.number((bars.low + bars.high) / 2)
    width = len(bars.counts)
    left = max(1, width // 2 - len(low) - len(middle) // 2)
    axis = low + " " * left + middle if bars.low < bars.high else low
    axis += high.rjust(max(len(high) + 1, width - len(axis)))
    yield line((" " * (len(most) + 1) + axis, "dim"))


def _group(group: Group, page: Page) -> Iterator[Text]:
    """Side by side where they fit as they are, or where an equal share is wide enough for each."""
    blocks = _blocks(group, page)
    level = list(beside(blocks))
    if max(text.cell_len for text in level) <= page.width:
        yield from level
        return
    share = (page.width + 2 * GAP) // len(blocks) - 2 * GAP
    if share >= _NARROWEST_BLOCK:
        narrow = _blocks(group, replace(page, width=share))
        if all(text.cell_len <= share for block in narrow for text in block):
            yield from beside(narrow)
            return
    for i, block in enumerate(blocks):
        if i:
            yield Text()
        yield from block


def _blocks(group: Group, page: Page) -> list[list[Text]]:
    return [[text for part in parts for text in _part(part, page)] for parts in group.blocks]
