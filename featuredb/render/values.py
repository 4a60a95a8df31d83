"""Single values for reading: what text and HTML show of any table cell or any named fact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featuredb.render import numbers
from featuredb.render.characters import label, neutralize
from featuredb.render.precision import shortest

if TYPE_CHECKING:
    import pyarrow as pa

_LONGEST_NESTED = 160
_LONGEST_LIST = 36


def cells(table: pa.Table, rows: int) -> list[list[str]]:
    """The first rows, every value on one line. A long list or struct is visibly shortened."""
    columns = [column.to_pylist() for column in shortest(table.slice(0, rows)).columns]
    return [[cell(value) for value in row] for row in zip(*columns, strict=True)]


def is_number(table: pa.Table, column: int) -> bool:
    """Whether a column is aligned on the right."""
    import pyarrow.types as types

    kind = table.schema.field(column).type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def cell(value: Any) -> str:
    """A value of a table, on one line."""
    match value:
        case None:
            return numbers.MISSING
        case bool():
            return "true" if value else "false"
        case float():
            return _decimal(value)
        case bytes():
            return value.hex()
        case list() if value and all(isinstance(item, str | int | float) for item in value):
            return _listed(value)
        case list() | dict():
            text = neutralize(json.dumps(value, ensure_ascii=False, default=_other))
            return text if len(text) <= _LONGEST_NESTED else f"{text[: _LONGEST_NESTED - 1]}…"
        case _:
            return neutralize(str(value))


def _listed(items: list[Any]) -> str:
    """`·death ·died +3`: the first of a list of texts or numbers, and how many more there are."""
    shown: list[str] = []
    width = 0
    for item in items:
        text = label(item) if isinstance(item, str) else cell(item)
        if shown and width + len(text) > _LONGEST_LIST:
            break
        shown.append(text)
        width += len(shown[-1]) + 1
    return " ".join([*shown, *([f"+{len(items) - len(shown)}"] if len(shown) < len(items) else [])])


def _other(value: Any) -> str:
    """What JSON has no type for, spelled as elsewhere."""
    return value.hex() if isinstance(value, bytes) else str(value)


def is_nested(value: Any) -> bool:
    """A mapping, or a list of mappings. Anything else is one line."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)


def title(name: str) -> str:
    """The name of a fact."""
    return neutralize(str(name)).replace("_", " ")


def spell(name: str, value: Any) -> str:
    """The value of a fact. Its name says what kind of number it is."""
    match value:
        case None:
            return numbers.MISSING
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("bytes"):
            return numbers.size(value)
        case int() if name.endswith(("version", "id", "seed")):
            return str(value)
        case int():
            return numbers.count(value)
        case float() if name.endswith("density"):
            return numbers.density(value)
        case float():
            return numbers.number(value)
        case list() | tuple():
            return ", ".join(spell(name, item) for item in value) or "none"
        case Mapping():
            return ", ".join(f"{title(k)} {spell(k, v)}" for k, v in value.items()) or "none"
        case _:
            return neutralize(str(value))


def _decimal(value: float) -> str:
    if value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.6g}" if not 1e5 <= abs(value) < 1e15 else f"{value:.1f}"
