"""Sizes and durations as people write them: ``4GB``, ``500MB``, ``1GiB``, ``30m``, ``2d``."""

from __future__ import annotations

import re
from datetime import timedelta

from featuredb.errors import OptionError

LEAST_MEMORY = 100 * 10**6
"""The smallest memory bound in bytes: the libraries alone take as much."""

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_DURATIONS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def size_of(text: str) -> int:
    """A memory bound in bytes. Raises `OptionError` for anything that is not a size, or is less
    than `LEAST_MEMORY`."""
    # From Python it may be a number of bytes.
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?i?B?)\s*", str(text), re.IGNORECASE)
    unit = match[2].upper().replace("I", "") if match else ""
    unit = unit if unit.endswith("B") or not unit else f"{unit}B"
    try:
        size = int(float(match[1]) * _SIZES[unit]) if match else 0
    except (ValueError, KeyError):
        size = 0
    if size < LEAST_MEMORY:
        raise OptionError(f"memory must be a size of at least 100MB such as 4GB, not {text!r}")
    return size


def duration_of(text: str) -> timedelta:
    """A number and its unit: s, m, h or d. Raises `OptionError` for anything else, and for more
    than a `timedelta` holds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if match is None:
        raise OptionError(f"a time must be a number and s, m, h or d, as in 1h, not {text!r}")
    try:
        return timedelta(**{_DURATIONS[match[2]]: float(match[1])})
    except OverflowError as error:
        raise OptionError(
            f"a time can be at most {timedelta.max.days}d long, not {text!r}"
        ) from error
