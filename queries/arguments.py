"""Arguments of a question, checked once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from featuredb.errors import QueryError
from featuredb.store.names import BAD_COUNT, BAD_OFFSET, BAD_SEED, BAD_WINDOW

_END = 2**63
"""DuckDB's and numpy's whole numbers end there."""


def check_k(k: int) -> int:
    """How many answers. Raises `QueryError` unless it is a whole number, 1 to 2^63 - 1."""
    if not is_whole(k) or not 1 <= k < _END:
        raise QueryError(BAD_COUNT.format(k=k))
    return int(k)


def check_offset(offset: int) -> int:
    """How many are passed over. Raises `QueryError` unless it is a whole number, 0 to 2^63 - 1."""
    if not is_whole(offset) or not 0 <= offset < _END:
        raise QueryError(BAD_OFFSET.format(offset=offset))
    return int(offset)


def check_window(window: int) -> int:
    """Tokens either side. Raises `QueryError` unless it is a whole number, 0 to 2^63 - 1."""
    if not is_whole(window) or not 0 <= window < _END:
        raise QueryError(BAD_WINDOW.format(window=window))
    return int(window)


def check_seed(seed: int) -> int:
    """What a draw depends on. Raises `QueryError` unless it is a whole number, 0 to 2^63 - 1."""
    if not is_whole(seed) or not 0 <= seed < _END:
        raise QueryError(BAD_SEED.format(seed=seed))
    return int(seed)


def check_bounds(low: float | None, high: float | None) -> None:
    """Least and greatest activation. Raises `QueryError` for NaN, and for what is no number."""
    for bound in (low, high):
        if bound is not None and not _is_number(bound):
            raise QueryError(
                f"min_activation and max_activation must be numbers, not {bound!r:.30}"
            )


def _is_number(value: object) -> bool:
    """Whether it is one that floats have, infinity too, of Python or numpy."""
    if not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises `QueryError` unless the argument `name` is one of `choices`."""
    if value not in choices:
        raise QueryError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_text(text: object, what: str, raising: type[QueryError] = QueryError) -> str:
    """A valid text of a question. what: its name in the message.

    Raises `raising` for anything else, lone surrogates (bytes that were no UTF-8) among it.
    """
    if not isinstance(text, str):
        raise raising(f"{what} must be text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise raising(f"{what} is not UTF-8 text, at character {error.start}") from None
    return text


def several(value: object) -> list[Any] | None:
    """What is in a list, an array or a column. None for one thing, as text and bytes are."""
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        return None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return None
    return list(value.to_pylist() if hasattr(value, "to_pylist") else value)


def one_or_several(value: object) -> list[Any]:
    """What is in a list, an array or a column, or the one thing that was given instead."""
    given = several(value)
    return [value] if given is None else given


def is_whole(value: object) -> bool:
    """Whether it is an integer, of Python or numpy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
