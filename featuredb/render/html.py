"""Views as HTML, every string made harmless and escaped: how it looks is a template's.

``parts.html`` is for notebooks: one element, inline styles, no script.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any

from markupsafe import Markup

from featuredb.render import numbers, values
from featuredb.render.bars import heights
from featuredb.render.characters import label, neutralize, spelled
from featuredb.render.shading import BARS, css, shade
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
    Passages,
    PlaceColumn,
    Records,
    Shown,
    Table,
    TokenColumn,
)

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
    environment.globals |= {
        "css": css,
        "bins": bins,
        "bar_color": BARS,
        **dict(drawing.helpers),
    }
    return environment.get_template(drawing.name).module


def bins(counts: Sequence[int], low: str, high: str, noun: str) -> list[tuple[str, str]]:
    """(height in percent, what it holds) of each bin of a histogram."""
    first, last = float(low), float(high)
    width = (last - first) / max(1, len(counts))
    # Places are whole: bins of 8 tokens end at 8, not at 8.000.
    spelled_ = "{:.0f}".format if first == int(first) and width == int(width) else numbers.number
    edges = [spelled_(first + width * i) for i in range(len(counts) + 1)]
    return [
        (f"{100 * share:.1f}", f"{start} to {end}: {numbers.plural(count, noun)}")
        for share, start, end, count in zip(
            heights(counts), edges[:-1], edges[1:], counts, strict=True
        )
    ]


def _end(value: float) -> str:
    return str(value) if isinstance(value, int) else numbers.number(value)


def _marked(bars: Bars) -> tuple[str, str] | None:
    """(percent of the width, the value) of what is marked. A value beyond an end is at that."""
    if bars.mark is None:
        return None
    share = (bars.mark - bars.low) / (bars.high - bars.low or 1.0)
    return f"{100 * min(1.0, max(0.0, share)):.1f}", numbers.number(bars.mark)


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
                ends = _end(part.low), _end(part.high)
                return self.draw("bars", part.title, part.counts, *ends, _marked(part))
            case Group():
                return self.draw("group", [self.joined(parts) for parts in part.blocks])

    def joined(self, parts: Sequence[Part]) -> Any:
        """Parts one under the other."""
        return Markup("").join(map(self.part, parts))

    def _facts(self, data: Mapping[str, Any]) -> Markup:
        lines = []
        for name, value in data.items():
            if is_nested(value):
                parts = [value] if isinstance(value, Mapping) else value
                cell: Any = self.joined([Facts(part) for part in parts])
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
        names = [c.heading if isinstance(c, TokenColumn) else c.name for c in columns]
        return self.draw("table", names if any(names) else None, lines, numeric, below)

    def _cells(self, column: AnyColumn) -> Sequence[Any]:
        match column:
            case TokenColumn():
                titles = zip_longest(column.titles[: len(column.cells)], column.cells)
                return [self._tokens(cell, column.most, name) for name, cell in titles]
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
            case BarColumn():
                return [self.draw("bar", f"{100 * share:.1f}") for share in column.shares]

    def _tokens(self, tokens: Sequence[str], most: int, name: str | None = None) -> Markup:
        shown = [label(token) for token in tokens[:most]]
        return self.draw("tokens", shown, max(0, len(tokens) - most), neutralize(name or ""))

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
        valued = any(item.value is not None for item in passages.items)
        activations = numbers.aligned([item.value for item in passages.items])
        drawn = []
        for item, activation in zip(passages.items, activations, strict=True):
            words = self._words(
                item.tokens, item.activations, passages.scale, item.peak, item.faint
            )
            window = self.draw("window", words, "… " if item.inside else "")
            drawn.append((item, activation if valued else "", window))
        return self.draw("passages", drawn, any(item.rank for item in passages.items))

    def _words(
        self,
        tokens: Sequence[str],
        activations: Sequence[float],
        scale: float,
        peak: int | None,
        faint: Collection[int] = (),
    ) -> list[tuple[str, str, int, bool, str]]:
        """(space before, word, shade, is the peak, activation) per token, inactive ones together.

        The shade is 0 where the token is not active, else up to `LEVELS`, negative as the value.
        """
        words: list[tuple[str, str, int, bool, str]] = []
        plain: list[str] = []
        for i, (token, value) in enumerate(zip(spelled(tokens), activations, strict=True)):
            word = neutralize(token)
            bare = word.lstrip(" ") or word
            space = word[: len(word) - len(bare)]
            level = shade(value, scale)
            if i in faint:
                bare = self.draw("dim", bare)
            elif level == 0 and i != peak:
                # Escaping a text token by token takes longer than everything else.
                plain.append(word)
                continue
            if plain:
                words.append(("", "".join(plain), 0, False, ""))
                plain.clear()
            words.append((space, bare, level, i == peak, numbers.number(value)))
        if plain:
            words.append(("", "".join(plain), 0, False, ""))
        return words

    def _records(self, records: Records) -> Markup:
        table = records.table
        numeric = {i for i in range(table.num_columns) if values.is_number(table, i)}
        lines = values.cells(table, _ROWS_SHOWN)
        drawn = self.draw("table", list(table.column_names), lines, numeric)
        if table.num_rows > _ROWS_SHOWN:
            drawn += self.draw("dim", f"… {table.num_rows - _ROWS_SHOWN:,} more rows")
        return drawn
