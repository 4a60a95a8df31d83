"""JSON values that keep what Python's types would lose, and values as JSON text.

A number that int or float cannot hold as it is written is a `Numeral`. An object that repeats a key
is `Entries`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

EXACT_DOUBLE, EXACT_SINGLE = 2**53, 2**24
"""From here on float64 and float32 skip integers."""

_SMALLEST = 1e-300
_LONGEST_INTEGER = 4_000
"""Digits of an integer that Python converts under any of its limits."""


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number as it is written."""

    text: str


@dataclass(frozen=True, slots=True)
class Entries:
    """The keys and values of an object that repeats a key."""

    pairs: tuple[tuple[str, Any], ...]


class _Unusual(Exception):
    """A value that `json` would write otherwise than it was."""


def decode(text: str, at: int = 0) -> tuple[Any, int]:
    """Decode the JSON value at `at`. Returns it and where it ends.

    Raises:
        json.JSONDecodeError: there is none.
        RecursionError: it is nested too deep.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        return _SLOW_DECODER.raw_decode(text, at)


def number(text: str) -> float | Numeral:
    """A decimal numeral as the nearest float.

    A `Numeral` where that is infinite, zero though the numeral is not, or rounds digits before the
    point.
    """
    value = float(text)
    size = abs(value)
    if _SMALLEST < size < EXACT_DOUBLE:
        return value
    mantissa, exponent, _ = text.lower().partition("e")
    if size == 0:
        return Numeral(text) if mantissa.strip("-0.") else value
    if math.isinf(value):
        return Numeral(text)
    rounds = size >= EXACT_DOUBLE and not exponent and Decimal(repr(value)) != Decimal(text)
    return Numeral(text) if rounds else value


def as_text(value: Any) -> str | None:
    """Convert a value for a string column: strings as they are, others as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=_other)
    except _Unusual:
        return _dumps(value)


def _other(value: Any) -> str:
    """A value that JSON has no type for."""
    if isinstance(value, Numeral | Entries):
        raise _Unusual
    return value.hex() if isinstance(value, bytes) else str(value)


def _dumps(value: Any) -> str:
    match value:
        case Numeral():
            return value.text
        case list():
            return "[" + ", ".join(map(_dumps, value)) + "]"
        case dict() | Entries():
            pairs = value.pairs if isinstance(value, Entries) else value.items()
            names = (json.dumps(name, ensure_ascii=False) for name, _ in pairs)
            values = (_dumps(item) for _, item in pairs)
            return "{" + ", ".join(map(": ".join, zip(names, values, strict=True))) + "}"
        case _:
            return json.dumps(value, ensure_ascii=False, default=_other)


def _integer(text: str) -> int | Numeral:
    return int(text) if len(text) <= _LONGEST_INTEGER else Numeral(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Entries:
    record = dict(pairs)
    return record if len(record) == len(pairs) else Entries(tuple(pairs))


_DECODER = json.JSONDecoder(parse_float=number, object_pairs_hook=_object)
_SLOW_DECODER = json.JSONDecoder(parse_float=number, parse_int=_integer, object_pairs_hook=_object)
