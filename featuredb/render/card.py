"""A feature's dashboard: its numbers, how its activations spread, its tokens, where it fires."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from featuredb.render import contexts, numbers, tables
from featuredb.render.characters import label
from featuredb.render.layout import Column, beside, grid, line
from featuredb.render.page import Page
from queries.answers import FeatureCard, Row

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HISTOGRAM_ROWS = 6
_TOKENS_SHOWN = 8


def draw(card: FeatureCard, page: Page) -> Iterator[Text]:
    """Everything on the card, each part under its own heading."""
    row = card.statistics
    yield line(("feature ", "dim"), (tables.feature_name(row), "bold"))
    yield from facts(row)
    yield Text()
    yield from _side_by_side(page, [_histogram(row, page), _quantiles(row)])
    yield Text()
    yield from _side_by_side(
        page,
        [
            _tokens("fires on", row.top_tokens, {"count": "count", "mean_activation": "mean"}),
            _tokens("promotes", row.promoted_tokens, {"logit": "logit"}),
            _tokens("suppresses", row.suppressed_tokens, {"logit": "logit"}),
        ],
    )
    if len(card.contexts):
        yield Text()
        yield line(("top contexts", "dim"))
        yield from contexts.blocks(card.contexts, page)
    if len(card.neighbors):
        yield Text()
        yield line((f"nearest by {card.neighbors.by}", "dim"))
        yield from tables.neighbors_lines(card.neighbors, page)


def histogram_rows(counts: list[int], height: int = _HISTOGRAM_ROWS) -> list[str]:
    """Bars of eighth blocks, top line first, on a logarithmic scale: activations are skewed.

    A bin that holds anything is at least one eighth high.
    """
    top = math.log1p(max(counts, default=0))
    eighths = [math.ceil(8 * height * math.log1p(n) / top) if n else 0 for n in counts]
    return [
        "".join(_EIGHTHS[min(8, max(0, e - 8 * line))] for e in eighths)
        for line in reversed(range(height))
    ]


def facts(row: Row) -> Iterator[Text]:
    """One line per number, its name in the first 14 columns."""
    if not row.count:
        yield line(("never active on the recorded tokens", "dim"))
        yield _line("decoder norm", numbers.number(row.decoder_norm))
        return
    spread = (
        f"{numbers.count(row.n_contexts)} contexts of {numbers.count(row.n_documents)} documents"
    )
    share = numbers.density(row.density)
    share += " of tokens" if share.endswith("%") else " tokens"
    yield _line("active on", f"{share} · {numbers.plural(row['count'], 'activation')} in {spread}")
    yield _line(
        "activation",
        f"maximum {numbers.number(row.max_activation)}"
        f" · mean {numbers.number(row.mean_activation)} ± {numbers.number(row.std_activation)}"
        f" · minimum {numbers.number(row.min_activation)}",
    )
    yield _line("decoder norm", numbers.number(row.decoder_norm))


def extent(row: Row) -> tuple[str, str]:
    """Where the histogram begins and ends."""
    return numbers.number(min(0.0, row.min_activation or 0.0)), numbers.number(row.max_activation)


def _histogram(row: Row, page: Page) -> list[Text]:
    counts = row.histogram or []
    style = page.ramp.bars if page.ramp else ""
    bars = [line((bar, style)) for bar in histogram_rows(counts)] if any(counts) else []
    low, high = extent(row)
    axis = low + high.rjust(max(1, len(counts) - len(low)))
    return [line(("activations (log count)", "dim")), *bars, line((axis, "dim"))]


def _quantiles(row: Row) -> list[Text]:
    quantiles = row.quantiles or []
    values = numbers.aligned([entry["value"] for entry in quantiles])
    return grid(
        [
            Column("quantile", [Text(f"{100 * entry['q']:g}%") for entry in quantiles], right=True),
            Column("activation", [Text(value) for value in values], right=True),
        ]
    )


def _tokens(name: str, entries: list[dict[str, Any]] | None, values: dict[str, str]) -> list[Text]:
    if not entries:
        return [line((name, "dim")), line(("none", "dim"))]
    shown = entries[:_TOKENS_SHOWN]
    columns = [Column(name, [Text(label(entry["token"])) for entry in shown])]
    for key, heading in values.items():
        column = [entry[key] for entry in shown]
        cells = [numbers.count(n) for n in column] if key == "count" else numbers.aligned(column)
        columns.append(Column(heading, [Text(cell, "dim") for cell in cells], right=True))
    rest = len(entries) - len(shown)
    return grid(columns) + ([line((f"… {rest} more", "dim"))] if rest else [])


def _side_by_side(page: Page, blocks: list[list[Text]]) -> Iterator[Text]:
    """Blocks next to each other, or one under the other where the page is too narrow."""
    level = list(beside(blocks))
    if max(text.cell_len for text in level) <= page.width:
        yield from level
        return
    for i, block in enumerate(blocks):
        if i:
            yield Text()
        yield from block


def _line(name: str, value: str) -> Text:
    return line((f"{name:<14}", "dim"), value)
