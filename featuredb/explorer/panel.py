"""Panels: one answer each, with the calls that give it elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from featuredb.render.view import Shown, View

Ask = Callable[[], Shown]

_QUOTED = {word: f'"{word}"' for word in ("distinct", "offset", "where")}
"""Options of macros that are words of SQL."""


@dataclass(frozen=True)
class Spelling:
    """How to ask the same on the command line, in Python and in SQL, "" where that cannot."""

    cli: str = ""
    python: str = ""
    sql: str = ""

    def items(self) -> list[tuple[str, str]]:
        """(language, text) of those there are."""
        named = (("CLI", self.cli), ("Python", self.python), ("SQL", self.sql))
        return [(name, text) for name, text in named if text]


@dataclass(frozen=True)
class Panel:
    """An answer under a title.

    lazy: asked only once the page is there. shown: what is drawn of the answer, its view by
    default. drawn: what is drawn instead, where that takes less than the whole answer. folded:
    only its title is shown until it is opened.
    """

    name: str
    title: str
    ask: Ask
    spelling: Spelling
    lazy: bool = False
    shown: Callable[[Any], View] | None = None
    folded: bool = False
    drawn: Callable[[], View] | None = None

    def view(self) -> View:
        """What is drawn."""
        if self.drawn is not None:
            return self.drawn()
        answer = self.ask()
        return answer.view() if self.shown is None else self.shown(answer)


class Counted:
    """A question that says afterwards how many rows its answer had."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.rows = 0

    def __call__(self) -> Shown:
        """The answer."""
        answer = self._ask()
        self.rows = answer.arrow().num_rows
        return answer


def call(
    verb: str,
    database: str,
    arguments: Sequence[str | int],
    options: Mapping[str, Any],
) -> str:
    """`featuredb top demo.fdb 3722 --window 8`: options that are None, False or "" are left out.

    A flag is True, `k` has one dash, an option of several values is repeated. `--` comes before
    arguments of which one begins with a dash.
    """
    given = [database, *map(str, arguments)]
    plain = list(takewhile(lambda word: not word.startswith("-"), given))
    words = ["featuredb", *verb.split(), *plain]
    for name, value in options.items():
        option = "-k" if name == "k" else f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else [value]:
            if each in (None, "") or each is False:
                continue
            words += [option] if each is True else [option, str(each)]
    if len(plain) < len(given):
        words += ["--", *given[len(plain) :]]
    return shlex.join(words)


def method(name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> str:
    """`db.top_contexts(3722, window=8)`."""
    given = [repr(value) for value in arguments]
    for option, value in options.items():
        if value not in (None, "", [], ()) and value is not False:
            given.append(f"{option}={value!r}")
    return f"db.{name}({', '.join(given)})"


def macro(name: str, arguments: Sequence[Any], options: Mapping[str, Any] | None = None) -> str:
    """`FROM top_contexts(3722, k := 20)`."""
    given = [literal(value) for value in arguments]
    for option, value in (options or {}).items():
        if value not in (None, ""):
            given.append(f"{_QUOTED.get(option, option)} := {literal(value)}")
    return f"FROM {name}({', '.join(given)})"


def literal(value: Any) -> str:
    """A value in SQL."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"
