"""What the address of a page asks for: its parameters, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from featuredb.errors import QueryError

Value = str | int | float | bool | None

_LONGEST = 4_000
"""Bytes of a value that an address holds. What is longer is sent, and explorer.js knows it too."""

_DIGITS = 20
"""More than any bound has."""


@dataclass(frozen=True)
class Address:
    """A page's path and the parameters of its address. A blank parameter is as good as none."""

    path: str
    pairs: tuple[tuple[str, str], ...] = ()

    def text(self, name: str, default: str = "") -> str:
        """The last of that name, without space around it."""
        return next(
            (v.strip() for n, v in reversed(self.pairs) if n == name and v.strip()), default
        )

    def raw(self, name: str) -> str:
        """The last of that name as it was given, with line feeds: browsers send CRLF."""
        given = next((value for n, value in reversed(self.pairs) if n == name), "")
        return given.replace("\r\n", "\n")

    def several(self, name: str) -> list[str]:
        """All of that name, each split at commas."""
        given = [part.strip() for n, value in self.pairs if n == name for part in value.split(",")]
        return [part for part in given if part]

    def flag(self, name: str) -> bool:
        """Whether it is on."""
        return self.text(name) not in ("", "0", "false", "no")

    def whole(self, name: str, default: int, low: int = 0, high: int = 1_000) -> int:
        """A whole number. Raises `QueryError` for another, or one out of bounds."""
        value = self.text(name)
        if not value:
            return default
        if not re.fullmatch("[+-]?[0-9]+", value):
            raise QueryError(f"{name} must be a whole number, not {_cut(value)!r}")
        if len(value) > _DIGITS or not low <= int(value) <= high:
            raise QueryError(f"{name} must be from {low:,} to {high:,}, not {_cut(value)}")
        return int(value)

    def number(self, name: str) -> float | None:
        """A number or None. Raises `QueryError` for what is neither."""
        value = self.text(name)
        if not value:
            return None
        try:
            # Python reads digits of other scripts, and underscores between them.
            return float(value if value.isascii() and "_" not in value else "")
        except ValueError:
            raise QueryError(f"{name} must be a number, not {_cut(value)!r}") from None

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of them, the first by default. Raises `QueryError` for another."""
        value = self.text(name, choices[0])
        if value not in choices:
            raise QueryError(f"{name} must be {', '.join(choices)}, not {_cut(value)!r}")
        return value

    @property
    def sent(self) -> bool:
        """Whether it has what only a form that is sent can hold."""
        return any(_long(value) for _, value in self.pairs)

    def url(self, ending: str = "", **changes: Value) -> str:
        """This page's address with other parameters: None and "" leave one out.

        What is too long for an address is left out too.
        """
        pairs = [
            (name, value)
            for name, value in self.pairs
            if name not in changes and value.strip() and not _long(value)
        ]
        return address(self.path + ending, [*pairs, *changes.items()])


def address(path: str, pairs: Sequence[tuple[str, Value]] | Mapping[str, Value] = ()) -> str:
    """A path and parameters as one address."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    query = urlencode([(name, _spelled(v)) for name, v in items if v not in (None, "", False)])
    return quote(path, safe="/~") + (f"?{query}" if query else "")


def _cut(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:40]}…"


def _long(value: str) -> bool:
    return len(value) > _LONGEST or len(quote(value)) > _LONGEST


def _spelled(value: Value) -> str:
    return "1" if value is True else str(value)


def feature_url(name: str) -> str:
    """The page of a feature `sae/1234`."""
    return quote(f"/feature/{name}", safe="/~")
