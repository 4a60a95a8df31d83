"""Views as HTML, every string made harmless and escaped: how it looks is a template's.

``parts.html`` is for notebooks: one element, inline styles, no script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup

from featuredb.render import numbers, values
from featuredb.render.bars import histogram_rows
from featuredb.render.characters import label, neutralize, spelled
from featuredb.render.shading import css, shade
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
    drawing = Drawing()
    parts = (drawing.part(part) for section in answer.view() for part in section)
    return str(drawing.draw("answer", Markup("").join(parts)))


@cache
def _template(drawing: Drawing) -> Any:
    """The macros of a template. Whatever they print is made harmless, then escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(drawing.package, ""),
        autoescape=True,
        finalize=harmless,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"css": css, "histogram_rows": histogram_rows, **dict(drawing.helpers)}
    return environment.get_template(drawing.name).module


def harmless(value: Any) -> Any:
    """What a template prints, for `finalize`."""
    if value is None:
        return ""
    return neutralize(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@dataclass(frozen=True)
class Drawing:
    """Draws parts by the macros of a template, a file `name` of `package`.

    helpers: names and functions that the macros call.
    """

    package: str = "featuredb.render"
    name: str = "parts.html"
    helpers: tuple[tuple[str, Callable[..., Any]], ...] = ()

    def draw(self, macro: str, *arguments: Any, **named: Any) -> Markup:
        """What one macro draws."""
        drawn: Markup = getattr(_template(self), macro)(*arguments, **named)
        return drawn

    def part(self, part: Part) -> Markup:
        """One part of a view."""
        match part:
            case Heading():
                return self.draw("heading", part.before, part.subject, part.after)
            case Facts():
                return self._facts(part.data)
            case Table():
                return self._table(part)
            case Records():
                return self._records(part)
            case Passages():
                return self._passages(part)
            case Bars():
                return self.draw("bars", part.title, part.counts, part.low, part.high)
            case Group():
                blocks = [Markup("").join(map(self.part, parts)) for parts in part.blocks]
                return self.draw("group", blocks)

    def _facts(self, data: Mapping[str, Any]) -> Markup:
        lines = []
        for name, value in data.items():
            if is_nested(value):
                parts = [value] if isinstance(value, Mapping) else value
                cell: Any = Markup("").join(self._facts(part) for part in parts)
            else:
                cell = spell(name, value)
            lines.append((title(name), cell))
        return self.draw("facts", lines)

    def _table(self, table: Table) -> Markup:
        """A course along a text gets a separate line below its row."""
        courses = [column for column in table.columns if isinstance(column, CourseColumn)]
        columns = [column for column in table.columns if not isinstance(column, CourseColumn)]
        lines = [list(row) for row in zip(*map(self._cells, columns), strict=True)]
        if table.more:
            lines.append([f"… {table.more:,} more", *("" for _ in columns[1:])])
        numeric = {i for i, c in enumerate(columns) if isinstance(c, Column) and c.right}
        below = self._courses(courses[0]) if courses else ()
        names = [column.name for column in columns]
        return self.draw("table", names if any(names) else None, lines, numeric, below)

    def _cells(self, column: AnyColumn) -> Sequence[Any]:
        match column:
            case TokenColumn():
                return [self._tokens(cell) for cell in column.cells]
            case PlaceColumn():
                pairs = zip(column.tokens, column.indexes, strict=True)
                return [
                    self.draw("tokens", [f"{label(token)}\u00a0@{index}"]) for token, index in pairs
                ]
            case Column(features=True):
                return [self.draw("feature", cell) for cell in column.cells]
            case Column(tokens=True):
                return [self.draw("tokens", [label(cell)]) for cell in column.cells]
            case Column() if not (column.right or column.style or column.wrap):
                return [self.draw("nowrap", cell) for cell in column.cells]
            case Column():
                return column.cells
            case CourseColumn():
                return self._courses(column)

    def _tokens(self, tokens: Sequence[str]) -> Markup:
        shown = [label(token) for token in tokens[:_TOKENS_SHOWN]]
        return self.draw("tokens", shown, max(0, len(tokens) - _TOKENS_SHOWN))

    def _courses(self, column: CourseColumn) -> list[Markup]:
        """The text as each row sees it, shaded. Of a long text, the part around the peak."""
        shown = []
        for values_, peak, scale in zip(
            column.activations, column.peaks, column.scales, strict=True
        ):
            first, last = 0, len(column.tokens)
            if last > 2 * _REACH:
                first, last = max(0, peak - _REACH), peak + _REACH
            words = self._words(column.tokens[first:last], values_[first:last], scale, peak - first)
            before = "… " if first > 0 else ""
            after = " …" if last < len(column.tokens) else ""
            shown.append(self.draw("window", words, before, after))
        return shown

    def _passages(self, passages: Passages) -> Markup:
        activations = numbers.aligned([item.value for item in passages.items])
        drawn = []
        for item, activation in zip(passages.items, activations, strict=True):
            words = self._words(item.tokens, item.activations, passages.scale, item.peak)
            window = self.draw("window", words, "… " if item.inside else "")
            drawn.append((item, activation, window))
        return self.draw("passages", drawn, any(item.rank for item in passages.items))

    def _words(
        self, tokens: Sequence[str], activations: Sequence[float], scale: float, peak: int | None
    ) -> list[tuple[str, str, int, bool, str]]:
        """(space before, word, shade, is the peak, activation) per token.

        The shade is 0 where the token is not active, else up to `LEVELS`, negative as the value.
        """
        words = []
        for i, (token, value) in enumerate(zip(spelled(tokens), activations, strict=True)):
            word = neutralize(token)
            bare = word.lstrip(" ") or word
            space = word[: len(word) - len(bare)]
            words.append((space, bare, shade(value, scale), i == peak, numbers.number(value)))
        return words

    def _records(self, records: Records) -> Markup:
        table = records.table
        numeric = {i for i in range(table.num_columns) if values.is_number(table, i)}
        lines = values.cells(table, _ROWS_SHOWN)
        drawn = self.draw("table", list(table.column_names), lines, numeric)
        if table.num_rows > _ROWS_SHOWN:
            drawn += self.draw("dim", f"… {table.num_rows - _ROWS_SHOWN:,} more rows")
        return drawn
