"""Lines of text: aligned in columns, set side by side, broken to a width. Nothing is ever cut.

Lines are laid out here rather than by rich's tables and wrapping, which drop what does not fit.
Widths are in terminal cells: a Chinese character takes two, a combining accent none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len
from rich.text import Text

GAP = 2


@dataclass(frozen=True)
class Cells:
    """A heading and its cells."""

    name: str
    cells: list[Text]
    right: bool = False

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max([cell_len(self.name), *(cell.cell_len for cell in self.cells)])


def line(*parts: str | tuple[str, str] | Text) -> Text:
    """One line of parts, each a string, a string and its style, or a text."""
    return Text.assemble(*parts)


def grid(columns: Sequence[Cells], *, heading: bool = True) -> list[Text]:
    """A dim heading and the rows, every column as wide as its widest cell."""
    lines = [line() for _ in range(heading + len(columns[0].cells))] if columns else []
    for i, column in enumerate(columns):
        width = column.width if heading else max((c.cell_len for c in column.cells), default=0)
        cells = [Text(column.name, "dim")] * heading + column.cells
        for text, cell in zip(lines, cells, strict=True):
            space = " " * (width - cell.cell_len)
            text.append(" " * GAP if i else "")
            text.append(space if column.right else "").append_text(cell)
            text.append("" if column.right else space)
    return lines


def beside(blocks: Sequence[list[Text]], gap: int = 2 * GAP) -> Iterator[Text]:
    """Blocks of lines next to each other, their first lines level."""
    widths = [max((text.cell_len for text in block), default=0) for block in blocks]
    for texts in zip_longest(*blocks):
        joined = line()
        for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
            joined.append(" " * gap if i else "").append_text(text or Text())
            joined.append(" " * (width - (text.cell_len if text else 0)))
        yield joined


def under(label: Sequence[Text], body: Iterable[Text]) -> Iterator[Text]:
    """The body with `label` before its first line and as much space before the others."""
    prefix = line()
    for part in label:
        prefix.append_text(part).append(" " * GAP)
    for text in body:
        yield line(prefix, text)
        prefix = line(" " * prefix.cell_len)


def wrap(text: Text, width: int) -> list[Text]:
    """The text in lines of at most `width` cells, broken after spaces and wide characters.

    A word longer than the line is broken where the line ends. Spaces at a break may be dropped.
    """
    plain, offsets = text.plain, list[int]()
    start = chance = used = 0  # where the line begins, where it could end, cells so far
    for i, character in enumerate(plain):
        cells = cell_len(character)
        while used + cells > width and character != " " and i > start:
            # Twice where the word since the last chance is itself too long with this character.
            start = chance if chance > start else i
            offsets.append(start)
            used = cell_len(plain[start:i])
        used += cells
        if character == " " or cells == 2:
            chance = i + 1
    lines = text.divide(offsets)
    for part in lines:
        if part.cell_len > width:  # by spaces alone
            part.right_crop(part.cell_len - width)
    return list(lines)
