"""What fires on a text, by feature and by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from featuredb.errors import FeatureDBError, QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel, Spelling, call, macro, method
from featuredb.explorer.site import Site, Waiting, WebPage
from featuredb.render.characters import neutralize, spelled
from featuredb.render.view import CourseColumn, Part, Table, View
from queries.fires import ORDERS, Firing

_LONGEST = 100_000


def firing_on(site: Site, text: str, k: int = 20, by: str = "specificity", **bounds: Any) -> Firing:
    """What fires on a text. Raises `Waiting` while the model is not there that a new one needs."""
    if len(text) > _LONGEST:
        raise QueryError(f"the text has more than {_LONGEST:,} characters: give a part of it")
    if not site.database.has_text(text) and not site.model.ready():
        raise Waiting("the model is being loaded")
    return site.database.fires_on(text, k, by, **bounds)


def page(site: Site, asked: Address) -> WebPage:
    """A text or a stored context, tokens against features."""
    text, context = asked.raw("text"), asked.text("context")
    k, by = asked.whole("k", 20, 1, 500), asked.choice("by", ORDERS)
    bounds = {
        "min_density": asked.number("min_density"),
        "max_density": asked.number("max_density"),
    }
    values: dict[str, Any] = {"orders": ORDERS, "by": by, "text": text, "tokens": [], "token": None}
    values["context"] = context
    hidden = asked.flag("hide_bos")
    number = asked.whole("context", 0, 0, 2**62) if context else None
    if number is None and not text.strip():
        missing = "The text has only spaces: give one with words." if text else ""
        return WebPage("text.html", "Text", (), values, missing=missing)

    @cache
    def ask() -> Firing:
        if number is None:
            return firing_on(site, text, k, by, **bounds)
        return site.database.fires_in(number, k, by, **bounds)

    options = {"k": k, "by": by, **bounds}
    panels = [
        Panel(
            "firing",
            "Features on this text",
            ask,
            _spelling(site, text if number is None else number, options),
            shown=lambda firing: _features(firing, hidden and _begins_specially(site, firing)),
        )
    ]
    token = asked.text("at")
    if token:
        chosen = asked.whole("at", 0, 0, 10**9)
        values["token"] = chosen
        spelling = _spelling(site, text if number is None else number, options, chosen)
        panels.insert(
            0,
            Panel("token", "Features on this token", lambda: ask().by_token(k, chosen), spelling),
        )
    try:
        words = [(i, *word) for i, word in enumerate(_words(ask().tokens))]
        values["tokens"] = words[hidden and _begins_specially(site, ask()) :]
    except QueryError:
        raise
    except FeatureDBError:
        pass  # the panel says it
    title = f"Context {context}" if context else "Text"
    return WebPage("text.html", title, tuple(panels), values, lasting=bool(context))


def _spelling(
    site: Site, given: str | int, options: Mapping[str, Any], token: int | None = None
) -> Spelling:
    """Of a text or a stored context, or of one of its tokens, which no macro tells."""
    if isinstance(given, str):
        name, cli = "fires_on", call("fires", site.name, (given,), {**options, "token": token})
    else:
        stored = {"context": given, **options, "token": token}
        name, cli = "fires_in", call("fires", site.name, (), stored)
    python = method(name, (given,), options)
    if token is not None:
        return Spelling(cli, f"{python}.by_token({options['k']}, {token})")
    return Spelling(cli, python, macro(name, (given,), _in_sql(options)))


def _in_sql(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"ranked" if name == "by" else name: value for name, value in options.items()}


def _begins_specially(site: Site, firing: Firing) -> bool:
    return bool(firing.tokens) and firing.tokens[0] in site.store.texts.special


def _features(firing: Firing, hidden: bool) -> View:
    """The features, not the text once more. hidden: nor its first token, nor what fires on that."""
    if hidden:
        elsewhere = [row.n_tokens > 1 or row.token_index > 0 for row in firing]
        firing = replace(firing, table=firing.table.filter(elsewhere))
    (heading, *_), *rest = firing.view()
    if hidden:
        rest = [[_without_first(part) for part in section] for section in rest]
    return View([[heading], *rest])


def _without_first(part: Part) -> Part:
    """Courses along a text from its second token on."""
    if not isinstance(part, Table):
        return part
    columns = [
        replace(
            column,
            tokens=column.tokens[1:],
            activations=[values[1:] for values in column.activations],
            # A peak that is not shown is none that is.
            peaks=[peak - 1 if peak else len(column.tokens) for peak in column.peaks],
        )
        if isinstance(column, CourseColumn)
        else column
        for column in part.columns
    ]
    return replace(part, columns=columns)


def _words(tokens: list[str]) -> list[tuple[str, str]]:
    """(space before, word) of each token."""
    words = []
    for token in spelled(tokens):
        word = neutralize(token)
        bare = word.lstrip(" ") or "·"
        words.append((word[: len(word) - len(word.lstrip(" "))], bare))
    return words
