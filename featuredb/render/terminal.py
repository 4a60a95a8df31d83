"""Answers as text: the one place that knows which drawing belongs to which kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from rich.text import Text

from featuredb.render import card, contexts, report, rows, tables
from featuredb.render.page import Page, page_for
from queries.answers import Answer, FeatureCard, Firing, Info, Neighbors, SearchHits, TopContexts


def to_text(answer: Answer | Info, page: Page | None = None) -> str:
    """The answer for reading, without a newline at its end."""
    page = page or Page()
    return page.text(draw(answer, page)).rstrip("\n")


def write(answer: Answer | Info, stream: IO[str]) -> None:
    """The answer on a stream, in the colours and the width the stream has."""
    stream.write(to_text(answer, page_for(stream)) + "\n")


def draw(answer: Answer | Info, page: Page) -> Iterator[Text]:
    """The parts of the answer, top to bottom."""
    match answer:
        case TopContexts():
            return contexts.draw(answer, page)
        case Neighbors():
            return tables.draw_neighbors(answer, page)
        case Firing():
            return tables.draw_firing(answer, page)
        case SearchHits():
            return tables.draw_hits(answer, page)
        case FeatureCard():
            return card.draw(answer, page)
        case Info():
            return report.draw(answer, page)
        case _:
            return rows.draw(answer, page)
