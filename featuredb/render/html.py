"""Answers as HTML for notebooks: one element, inline styles, no script, every string escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from featuredb.render import card as cards
from featuredb.render import contexts, numbers, report, rows
from featuredb.render.characters import label, neutralise, spelled
from featuredb.render.shading import css
from featuredb.render.tables import feature_name
from queries.answers import (
    Answer,
    FeatureCard,
    Firing,
    Info,
    Neighbors,
    Row,
    SearchHits,
    TopContexts,
)

_TABLE = "border-collapse:collapse;border:0;width:auto;color:inherit;font:inherit"
_CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0"
_NUMBER = _CELL.replace("left", "right") + ";font-variant-numeric:tabular-nums;white-space:nowrap"
_MONO = "font-family:ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap"
_TOKENS_SHOWN = 10
_ROWS_SHOWN = 100
_REACH = 40  # tokens either side of the peak, in a text of more than twice as many


class Markup(str):
    """HTML that is already escaped."""

    __slots__ = ()


def to_html(answer: Answer | Info) -> str:
    """One `div` with everything the text form shows."""
    return f'<div style="font-size:13px;line-height:1.5">{"".join(_draw(answer))}</div>'


def _draw(answer: Answer | Info) -> Iterator[str]:
    match answer:
        case TopContexts():
            yield _heading(contexts.heading(answer).plain)
            yield _contexts(answer)
        case Neighbors():
            yield _heading(f"near {answer.feature} by {answer.by}")
            yield _features(answer, _score(answer))
        case SearchHits():
            yield _heading(f"search {answer.query}")
            yield _features(answer, {"score": "score"}, {"matched": lambda row: row.matched})
        case Firing():
            yield _heading(numbers.plural(len(answer.tokens), "token"))
            yield _firing(answer)
        case FeatureCard():
            yield from _card(answer)
        case Info():
            yield _nested(answer.data)
        case _:
            yield _rows(answer)


def _contexts(answer: TopContexts) -> str:
    shown = list(answer)
    scale = contexts.shading_scale(answer, shown)
    activations = numbers.aligned([row.activation for row in shown])
    lines = []
    for row, activation in zip(shown, activations, strict=True):
        lead = Markup("… ") if row.window_start > 0 else Markup("")
        window = _window(row.tokens, row.activations, scale, row.token_index - row.window_start)
        body = Markup(f"<div>{_dim(contexts.provenance(row))}</div>{lead}{window}")
        lines.append([row.rank, activation, body])
    return _table(["", "activation", ""], lines, numeric={0, 1})


def _window(
    tokens: Iterable[str], activations: Iterable[float], scale: float, peak: int | None
) -> Markup:
    parts = []
    for i, (token, value) in enumerate(zip(spelled(tokens), activations, strict=True)):
        word = neutralise(token)
        bare = word.lstrip(" ") or word
        parts.append(word[: len(word) - len(bare)])
        shade = css(value, scale)
        if not shade:
            parts.append(_escape(bare))
            continue
        edge = ";font-weight:600;text-decoration:underline" if i == peak else ""
        parts.append(
            f'<span style="{shade};border-radius:2px{edge}"'
            f' title="{numbers.number(value)}">{_escape(bare)}</span>'
        )
    return Markup(f'<span style="{_MONO}">{"".join(parts)}</span>')


def _score(answer: Neighbors) -> dict[str, str]:
    return {"score": "jaccard" if answer.by == "coactivation" else "cosine"}


def _features(
    answer: Answer,
    scores: Mapping[str, str],
    extra: Mapping[str, Callable[[Row], Any]] | None = None,
    below: Callable[[Row], Markup] | None = None,
) -> str:
    """Rank, feature, scores (column: heading), extra columns (heading: cell), a line `below`."""
    shown = list(answer)
    columns = {key: numbers.aligned([row[key] for row in shown]) for key in scores}
    maxima = numbers.aligned([row.max_activation for row in shown])
    extra = extra or {}
    head = ["", "feature", *scores.values(), *extra, "density", "max", "fires on", "promotes"]
    lines = [
        [
            row.rank,
            Markup(f'<span style="white-space:nowrap">{_escape(feature_name(row))}</span>'),
            *(columns[key][i] for key in scores),
            *(function(row) for function in extra.values()),
            numbers.density(row.density),
            maxima[i],
            _labels(row.top_tokens),
            _labels(row.promoted_tokens),
        ]
        for i, row in enumerate(shown)
    ]
    first, second = 2 + len(scores), 2 + len(scores) + len(extra)
    numeric = {0, *range(2, first), second, second + 1}
    return _table(head, lines, numeric, [below(row) for row in shown] if below else None)


def _firing(answer: Firing) -> str:
    """Under each feature the text as it sees it, shaded; of a long text, the part at the peak."""
    if not len(answer):
        return str(_window(answer.tokens, [0.0] * len(answer.tokens), 1.0, None))

    def along(row: Row) -> Markup:
        first, last = 0, len(answer.tokens)
        if last > 2 * _REACH:
            first, last = max(0, row.token_index - _REACH), row.token_index + _REACH
        window = _window(
            answer.tokens[first:last],
            row.activations[first:last],
            row.max_activation,
            row.token_index - first,
        )
        before, after = "… " if first > 0 else "", " …" if last < len(answer.tokens) else ""
        return Markup(f"{before}{window}{after}")

    scores = {"specificity": "specificity", "activation": "activation"}
    peak = {"peak": lambda row: _token(f"{label(row.token)}\u00a0@{row.token_index}")}
    return _features(answer, scores, peak, along)


def _card(card: FeatureCard) -> Iterator[str]:
    row = card.statistics
    yield _heading(f"feature {feature_name(row)}")
    facts = [(line.plain[:14].strip(), line.plain[14:]) for line in cards.facts(row)]
    yield _table(None, [[_dim(k), v] for k, v in facts])
    bars = "\n".join(cards.histogram_rows(row.histogram or []))
    quantiles = [[f"{100 * q['q']:g}%", numbers.number(q["value"])] for q in row.quantiles or []]
    extent = " to ".join(cards.extent(row))
    histogram = Markup(
        f"<div>{_dim(f'activations (log count), {extent}')}</div>"
        f'<pre style="line-height:1;margin:4px 0">{bars}</pre>'
    )
    tokens = [
        _entries("fires on", row.top_tokens, "count", "mean_activation"),
        _entries("promotes", row.promoted_tokens, "logit"),
        _entries("suppresses", row.suppressed_tokens, "logit"),
    ]
    yield _table(
        None,
        [[histogram, Markup(_table(["quantile", "activation"], quantiles, {0, 1})), *tokens]],
    )
    if len(card.contexts):
        yield _heading("top contexts")
        yield _contexts(card.contexts)
    if len(card.neighbors):
        yield _heading(f"nearest by {card.neighbors.by}")
        yield _features(card.neighbors, _score(card.neighbors))


def _entries(name: str, entries: list[dict[str, Any]] | None, *keys: str) -> Markup:
    entries = entries or []
    lines = [
        [_token(label(e["token"]))]
        + [numbers.number(e[key]) if key != "count" else numbers.count(e[key]) for key in keys]
        for e in entries[:_TOKENS_SHOWN]
    ]
    if len(entries) > _TOKENS_SHOWN:
        lines.append([f"… {len(entries) - _TOKENS_SHOWN} more", *("" for _ in keys)])
    head = [name, *(key.replace("_activation", "") for key in keys)]
    return Markup(_table(head, lines, numeric=set(range(1, len(keys) + 1))))


def _rows(answer: Answer) -> str:
    shown = rows.cells(answer, _ROWS_SHOWN)
    numeric = {i for i in range(len(answer.table.column_names)) if rows.is_number(answer, i)}
    table = _table(list(answer.table.column_names), shown, numeric)
    if len(answer) > _ROWS_SHOWN:
        table += _dim(f"… {len(answer) - _ROWS_SHOWN:,} more rows")
    return table


def _nested(data: Mapping[str, Any]) -> str:
    lines = []
    for name, value in data.items():
        if report.is_nested(value):
            parts = [value] if isinstance(value, Mapping) else value
            cell = Markup("".join(_nested(part) for part in parts))
        else:
            cell = Markup(_escape(report.spell(name, value)))
        lines.append([_dim(report.title(name)), cell])
    return _table(None, lines)


def _table(
    head: list[str] | None,
    lines: list[list[Any]],
    numeric: Collection[int] = (),
    below: list[Markup] | None = None,
) -> str:
    """Cells under headings; `below` holds one more cell per line, under all but its first."""

    def row(tag: str, cells: Iterable[Any]) -> str:
        styled = (
            f'<{tag} style="{_NUMBER if i in numeric else _CELL}">{_escape(cell)}</{tag}>'
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(styled)}</tr>"

    out = [] if head is None else [row("th", head)]
    for i, line in enumerate(lines):
        out.append(row("td", line))
        if below:
            cell = f'<td colspan="{len(line) - 1}" style="{_CELL}">{below[i]}</td>'
            out.append(f"<tr><td></td>{cell}</tr>")
    return f'<table style="{_TABLE}">{"".join(out)}</table>'


def _labels(tokens: list[str] | None) -> Markup:
    tokens = tokens or []
    shown = _token(" ".join(label(token) for token in tokens[:_TOKENS_SHOWN]))
    rest = len(tokens) - _TOKENS_SHOWN
    return Markup(shown + _dim(f" +{rest}")) if rest > 0 else shown


def _token(text: str) -> Markup:
    return Markup(f'<span style="{_MONO}">{_escape(text)}</span>')


def _dim(text: str) -> Markup:
    return Markup(f'<span style="opacity:.65">{_escape(text)}</span>')


def _heading(text: str) -> str:
    return f'<div style="font-weight:600;margin:6px 0">{_escape(text)}</div>'


def _escape(value: Any) -> str:
    if isinstance(value, Markup):
        return value
    return html.escape(neutralise("" if value is None else str(value)))
