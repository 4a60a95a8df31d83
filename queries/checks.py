"""Arguments of a question, checked once."""

from __future__ import annotations

import numpy as np

from featuredb.errors import QueryError
from featuredb.names import BAD_COUNT, BAD_WINDOW


def check_k(k: int) -> int:
    """How many answers. Raises `QueryError` unless it is a whole number, 1 or more."""
    if not _whole(k) or k < 1:
        raise QueryError(BAD_COUNT.format(k=k))
    return int(k)


def check_window(window: int) -> int:
    """Tokens either side. Raises `QueryError` unless it is a whole number, 0 or more."""
    if not _whole(window) or window < 0:
        raise QueryError(BAD_WINDOW.format(window=window))
    return int(window)


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
