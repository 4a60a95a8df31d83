"""Features in aligned columns: what `near`, `fires` and `search` answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.text import Text

from featuredb.render import numbers
from featuredb.render.characters import label, neutralise
from featuredb.render.layout import GAP, Column, grid, line, wrap
from featuredb.render.page import Page
from queries.answers import Answer, Firing, Neighbors, Row, SearchHits

_BARS = "▁▂▃▄▅▆▇█"
_LINE_CELLS = 16
_NARROWEST_TOKENS = 18


def draw_neighbors(answer: Neighbors, page: Page) -> Iterator[Text]:
    """A heading, then one line per neighbour."""
    rest = f" by {answer.by} · {_found(answer, 'neighbor')}"
    if answer.method == "ivf":
        rest += f" · approximate, recall@10 {answer.recall:.3f}"
    yield line(("near ", "dim"), (neutralise(answer.feature), "bold"), (rest, "dim"))
    if len(answer):
        yield Text()
        yield from neighbors_lines(answer, page)


def neighbors_lines(answer: Neighbors, page: Page) -> list[Text]:
    """The lines alone, for a card."""
    rows = list(answer)
    score = "jaccard" if answer.by == "coactivation" else "cosine"
    return _lines(page, rows, [_numbers(score, rows, "score", bold=True), *_size(rows)])


def draw_firing(answer: Firing, page: Page) -> Iterator[Text]:
    """The text, then one line per feature with its course over the text."""
    found = f"{numbers.plural(len(answer.tokens), 'token')} · {_found(answer, 'feature')}"
    yield line((found, "dim"))
    yield from wrap(page.window(answer.tokens, [0.0] * len(answer.tokens), 1.0), page.width)
    if not len(answer):
        return
    rows = list(answer)
    bars = page.ramp.bars if page.ramp else ""
    columns = [
        _numbers("specific", rows, "specificity", bold=True),
        _numbers("active", rows, "activation"),
        Column("along the text", [Text(sparkline(row.activations), bars) for row in rows]),
        Column("peak", [_peak(row) for row in rows]),
        Column("tokens", [Text(str(row.n_tokens)) for row in rows], right=True),
        _size(rows)[0],
    ]
    yield Text()
    yield from _lines(page, rows, columns)


def draw_hits(answer: SearchHits, page: Page) -> Iterator[Text]:
    """A heading, then one line per feature."""
    rest = f" · {_found(answer, 'feature')}"
    yield line(("search ", "dim"), (neutralise(answer.query), "bold"), (rest, "dim"))
    if not len(answer):
        return
    rows = list(answer)
    matched = Column("matched", [Text(neutralise(row.matched or "")) for row in rows])
    yield Text()
    yield from _lines(
        page, rows, [_numbers("score", rows, "score", bold=True), matched, *_size(rows)]
    )


def feature_name(row: Row) -> str:
    """`sae/1234`, as the command line takes it."""
    return f"{neutralise(row.sae)}/{row.feature_id}"


def sparkline(activations: list[float]) -> str:
    """Activation over the text, at most 16 cells; a long text shows each stretch's maximum."""
    n = len(activations)
    cells = min(n, _LINE_CELLS)
    values = [
        max((abs(v) for v in activations[i * n // cells : (i + 1) * n // cells]), default=0.0)
        for i in range(cells)
    ]
    top = max(values, default=0.0)
    # The lowest bar is for nothing at all; an active token, however weak, stands above it.
    return "".join(_BARS[max(1, round(7 * v / top))] if v else _BARS[0] for v in values)


def _found(answer: Answer, noun: str) -> str:
    return numbers.plural(len(answer), noun) if len(answer) else f"no {noun}s"


def _peak(row: Row) -> Text:
    return Text.assemble(label(row.token), (f" @{row.token_index}", "dim"))


def _numbers(name: str, rows: list[Row], key: str, *, bold: bool = False) -> Column:
    style = "bold" if bold else ""
    cells = [Text(shown, style) for shown in numbers.aligned([row[key] for row in rows])]
    return Column(name, cells, right=True)


def _size(rows: list[Row]) -> list[Column]:
    density = [Text(numbers.density(row.density)) for row in rows]
    return [Column("density", density, right=True), _numbers("max", rows, "max_activation")]


def _lines(page: Page, rows: list[Row], middle: list[Column]) -> list[Text]:
    """Rank and feature, the question's own columns, then the feature's tokens.

    Where the page is too narrow for the tokens to share the line, they get the next.
    """
    columns = [
        Column("", [Text(str(row.rank), "dim") for row in rows], right=True),
        Column("feature", [Text(feature_name(row)) for row in rows]),
        *middle,
    ]
    left = page.width - sum(column.width + GAP for column in columns)
    room = (left - GAP) // 2
    if room >= _NARROWEST_TOKENS:
        return grid(
            [
                *columns,
                *(
                    Column(name, [page.tokens(get(row), room) for row in rows])
                    for name, get in _LISTS
                ),
            ]
        )
    heading, *lines = grid(columns)
    indent = " " * (columns[0].width + GAP)
    stacked = [heading]
    for row, text in zip(rows, lines, strict=True):
        stacked += [text, _token_line(page, row, indent)]
    return stacked


def _token_line(page: Page, row: Row, indent: str) -> Text:
    names = sum(len(name) + 1 for name, _ in _LISTS)
    room = (page.width - len(indent) - names - GAP) // len(_LISTS)
    text = line(indent)
    for i, (name, get) in enumerate(_LISTS):
        tokens = page.tokens(get(row), room)
        text.append(" " * GAP if i else "").append(f"{name} ", "dim").append_text(tokens)
        text.append(" " * (room - tokens.cell_len))
    return text


_LISTS: list[tuple[str, Callable[[Row], list[str]]]] = [
    ("fires on", lambda row: row.top_tokens or []),
    ("promotes", lambda row: row.promoted_tokens or []),
]
