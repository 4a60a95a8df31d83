"""Views as plain data, which the site's own script draws: what templates draw elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from featuredb.render.characters import label, neutralize
from featuredb.render.html import Drawing, bins, harmless
from featuredb.render.view import Part, Passage, View


class DataDrawing(Drawing):
    """Every part as `[macro, arguments…]`: lists, numbers, and harmless strings."""

    def draw(self, macro: str, *arguments: Any, **named: Any) -> Any:
        """What a template would be given."""
        if macro == "bars":
            title, counts, low, high, _ = arguments
            arguments = (title, bins(counts, low, high, "activation"), low, high)
        return [macro, *map(_plain, (*arguments, *named.values()))]

    def joined(self, parts: Sequence[Part]) -> Any:
        """Parts one under the other."""
        return [self.part(part) for part in parts]

    def sections(self, view: View) -> list[Any]:
        """All parts of a view, by section."""
        return [self.joined(section) for section in view]


def plain_table(table: pa.Table) -> pa.Table:
    """A table for a page: its lists of tokens joined by tabs, these and its labels harmless."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            lists = table.column(i).to_pylist()
            joined = ["\t".join(map(label, tokens or [])) for tokens in lists]
            table = table.set_column(i, field.name, pa.array(joined, pa.string()))
        elif field.name == "label":
            shown = [neutralize(text or "") for text in table.column(i).to_pylist()]
            table = table.set_column(i, field.name, pa.array(shown, pa.string()))
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, Passage):
        return [value.rank, value.about, value.title, _address(value.link), value.context]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(harmless(value)) if isinstance(value, str) else value


def _address(link: str) -> str:
    """Only one of the web."""
    return link if link.lower().startswith(("http://", "https://")) else ""
