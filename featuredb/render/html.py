"""Views as HTML for notebooks: one element, inline styles, no script, every string escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from markupsafe import Markup

from featuredb.render import numbers, values
from featuredb.render.bars import histogram_rows
from featuredb.render.characters import label, neutralize, spelled
from featuredb.render.shading import css
from featuredb.render.values import is_nested, spell, title
from featuredb.render.view import (
    AnyColumn,
    Bars,
    Column,
    CourseColumn,
    Facts,
    Group,
    Heading,
    Part,
    Passages,
    PlaceColumn,
    Records,
    Shown,
    Table,
    TokenColumn,
)

_TOKENS_SHOWN = 10
_ROWS_SHOWN = 100
_REACH = 40
"""Tokens on each side of the peak, in a text of more than twice as many."""


def to_html(answer: Shown) -> str:
    """One `div` with everything the text form shows."""
    parts = (_part(part) for section in answer.view() for part in section)
    return str(_draw("answer", Markup("").join(parts)))


@cache
def _template() -> Any:
    """The macros of ``parts.html``. Whatever they print is made harmless, then escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featuredb.render", ""),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("parts.html").module


def _harmless(value: Any) -> Any:
    if value is None:
        return ""
    return neutralize(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _draw(macro: str, *arguments: Any, **named: Any) -> Markup:
    drawn: Markup = getattr(_template(), macro)(*arguments, **named)
    return drawn


def _part(part: Part) -> Markup:
    match part:
        case Heading():
            return _draw("heading", f"{part.before}{part.subject}{part.after}")
        case Facts():
            return _facts(part.data)
        case Table():
            return _table(part)
        case Records():
            return _records(part)
        case Passages():
            return _passages(part)
        case Bars():
            rows = Markup("\n").join(histogram_rows(part.counts))
            return _draw("bars", f"{part.title}, {part.low} to {part.high}", rows)
        case Group():
            blocks = [Markup("").join(map(_part, parts)) for parts in part.blocks]
            return _draw("table", None, [blocks])


def _facts(data: Mapping[str, Any]) -> Markup:
    lines = []
    for name, value in data.items():
        if is_nested(value):
            parts = [value] if isinstance(value, Mapping) else value
            cell: Any = Markup("").join(_facts(part) for part in parts)
        else:
            cell = spell(name, value)
        lines.append([_draw("dim", title(name)), cell])
    return _draw("table", None, lines)


def _table(table: Table) -> Markup:
    """A course along a text gets a separate line below its row."""
    courses = [column for column in table.columns if isinstance(column, CourseColumn)]
    columns = [column for column in table.columns if not isinstance(column, CourseColumn)]
    lines = [list(row) for row in zip(*map(_cells, columns), strict=True)]
    if table.more:
        lines.append([f"… {table.more:,} more", *("" for _ in columns[1:])])
    numeric = {i for i, c in enumerate(columns) if isinstance(c, Column) and c.right}
    below = _courses(courses[0]) if courses else ()
    names = [column.name for column in columns]
    return _draw("table", names if any(names) else None, lines, numeric, below)


def _cells(column: AnyColumn) -> Sequence[Any]:
    match column:
        case TokenColumn():
            return [_tokens(cell) for cell in column.cells]
        case PlaceColumn():
            pairs = zip(column.tokens, column.indexes, strict=True)
            return [_draw("tokens", f"{label(token)}\u00a0@{index}") for token, index in pairs]
        case Column(tokens=True):
            return [_draw("tokens", label(cell)) for cell in column.cells]
        case Column() if not (column.right or column.style or column.wrap):
            return [_draw("nowrap", cell) for cell in column.cells]
        case Column():
            return column.cells
        case CourseColumn():
            return _courses(column)


def _tokens(tokens: Sequence[str]) -> Markup:
    shown = " ".join(label(token) for token in tokens[:_TOKENS_SHOWN])
    return _draw("tokens", shown, max(0, len(tokens) - _TOKENS_SHOWN))


def _courses(column: CourseColumn) -> list[Markup]:
    """The text as each row sees it, shaded. Of a long text, the part around the peak."""
    shown = []
    for values_, peak, scale in zip(column.activations, column.peaks, column.scales, strict=True):
        first, last = 0, len(column.tokens)
        if last > 2 * _REACH:
            first, last = max(0, peak - _REACH), peak + _REACH
        words = _words(column.tokens[first:last], values_[first:last], scale, peak - first)
        before = "… " if first > 0 else ""
        after = " …" if last < len(column.tokens) else ""
        shown.append(_draw("window", words, before, after))
    return shown


def _passages(passages: Passages) -> Markup:
    activations = numbers.aligned([item.value for item in passages.items])
    windows = []
    for item in passages.items:
        words = _words(item.tokens, item.activations, passages.scale, item.peak)
        window = _draw("window", words, "… " if item.inside else "")
        windows.append(_draw("passage", item.about, window) if item.about else window)
    if not any(item.rank for item in passages.items):
        return Markup("").join(windows)
    ranks = [item.rank for item in passages.items]
    lines = [list(row) for row in zip(ranks, activations, windows, strict=True)]
    return _draw("table", ["", "activation", ""], lines, {0, 1})


def _words(
    tokens: Sequence[str], activations: Sequence[float], scale: float, peak: int | None
) -> list[tuple[str, str, str, bool, str]]:
    """(space before, word, shade, is the peak, activation) per token."""
    words = []
    for i, (token, value) in enumerate(zip(spelled(tokens), activations, strict=True)):
        word = neutralize(token)
        bare = word.lstrip(" ") or word
        space = word[: len(word) - len(bare)]
        words.append((space, bare, css(value, scale), i == peak, numbers.number(value)))
    return words


def _records(records: Records) -> Markup:
    table = records.table
    numeric = {i for i in range(table.num_columns) if values.is_number(table, i)}
    lines = values.cells(table, _ROWS_SHOWN)
    drawn = _draw("table", list(table.column_names), lines, numeric)
    if table.num_rows > _ROWS_SHOWN:
        drawn += _draw("dim", f"… {table.num_rows - _ROWS_SHOWN:,} more rows")
    return drawn
