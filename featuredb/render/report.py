"""What a database holds, as an indented report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from featuredb.render import numbers
from featuredb.render.characters import neutralise
from featuredb.render.layout import GAP, line, under, wrap
from featuredb.render.page import Page
from queries.answers import Info

_INDENT = "  "


def draw(info: Info, page: Page) -> Iterator[Text]:
    """Values first, then each nested part under its name."""
    yield from _mapping(info.data, page, depth=0)


def _mapping(data: Mapping[str, Any], page: Page, depth: int) -> Iterator[Text]:
    indent = _INDENT * depth
    values = {name: value for name, value in data.items() if not is_nested(value)}
    width = max((cell_len(title(name)) for name in values), default=0)
    room = max(20, page.width - len(indent) - width - GAP)
    for name, value in values.items():
        label = f"{indent}{title(name)}" + " " * (width - cell_len(title(name)))
        yield from under([Text(label, "dim")], wrap(Text(spell(name, value)), room))
    for name, value in data.items():
        if not is_nested(value):
            continue
        if depth == 0:
            yield Text()
        yield line(indent, (title(name), "bold"))
        for i, part in enumerate([value] if isinstance(value, Mapping) else value):
            if i:
                yield Text()
            yield from _mapping(part, page, depth + 1)


def is_nested(value: Any) -> bool:
    """A mapping, or a list of mappings; anything else stands on one line."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)


def title(name: str) -> str:
    """A name for reading."""
    return neutralise(str(name)).replace("_", " ")


def spell(name: str, value: Any) -> str:
    """A value for reading; the name says what kind of number it is."""
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
            return _flat(value)
        case _:
            return neutralise(str(value))


def _flat(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{title(k)} {spell(k, v)}" for k, v in value.items()) or "none"
