"""Top contexts: each with its rank, activation and document, and the tokens around the peak."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from featuredb.render import numbers
from featuredb.render.characters import neutralise
from featuredb.render.layout import GAP, line, under, wrap
from featuredb.render.page import Page
from featuredb.store.names import ANSWER_COLUMNS
from queries.answers import Row, TopContexts


def draw(answer: TopContexts, page: Page) -> Iterator[Text]:
    """A heading, then one block per context."""
    yield heading(answer)
    if len(answer):
        yield Text()
        yield from blocks(answer, page)


def heading(answer: TopContexts) -> Text:
    """`feature 1234 · 20 contexts · maximum 14.23 in the store`"""
    found = numbers.plural(len(answer), "context") if len(answer) else "active in no such context"
    rest = f" · {found} · maximum {numbers.number(answer.max_activation)} in the store"
    return line(("feature ", "dim"), (neutralise(answer.feature), "bold"), (rest, "dim"))


def blocks(answer: TopContexts, page: Page) -> Iterator[Text]:
    """Rank and activation, aligned over all the contexts; beside them document and tokens."""
    rows = list(answer)
    scale = shading_scale(answer, rows)
    activations = numbers.aligned([row.activation for row in rows])
    ranks = [str(row.rank) for row in rows]
    rank_width, width = (max(map(len, column), default=0) for column in (ranks, activations))
    room = page.width - rank_width - width - 2 * GAP
    for row, rank, activation in zip(rows, ranks, activations, strict=True):
        lead = "…" if row.window_start > 0 else ""
        if lead and not row.tokens[0].startswith(" "):
            lead += " "
        window = page.window(
            row.tokens, row.activations, scale, peak=row.token_index - row.window_start
        )
        about = Text(provenance(row), "dim")
        about.truncate(room, overflow="ellipsis")
        body = [about, *wrap(Text.assemble((lead, "dim"), window), room)]
        label = [Text(rank.rjust(rank_width), "dim"), Text(activation.rjust(width), "bold")]
        yield from under(label, body)


def shading_scale(answer: TopContexts, rows: list[Row]) -> float:
    """The feature's maximum over the store, else over the answer."""
    if answer.max_activation:
        return abs(answer.max_activation)
    return max((abs(row.activation) for row in rows), default=0.0)


def provenance(row: Row) -> str:
    """`title · context 12 token 7 · topic History · source`: what matters most comes first."""
    names = [name for name in row.keys() if name not in ANSWER_COLUMNS]  # noqa: SIM118
    about = {name: _value(row[name]) for name in names if row[name] is not None}
    title = [about.pop("title")] if "title" in about else []
    source = [about.pop("source")] if "source" in about else []
    rest = [f"{neutralise(name)} {value}" for name, value in about.items()]
    place = f"context {row.context_id} token {row.token_index}"
    return " · ".join([*title, place, *rest, *source])


def _value(value: Any) -> str:
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return neutralise(str(value))
