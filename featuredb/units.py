"""Sizes as people write them: ``4GB``, ``500MB``, ``1GiB``."""

from __future__ import annotations

import re

from featuredb.errors import OptionError

LEAST_MEMORY = 100 * 10**6
"""Bytes below which no bound on memory is kept: the libraries alone take as much."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_of(text: str) -> int:
    """A bound on memory in bytes. Raises `OptionError` for anything that is not a size, or is
    less than `LEAST_MEMORY`."""
    # A caller from Python may well give a number, of bytes then.
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?i?B?)\s*", str(text), re.IGNORECASE)
    unit = match[2].upper().replace("I", "") if match else ""
    unit = unit if unit.endswith("B") or not unit else f"{unit}B"
    try:
        size = int(float(match[1]) * _UNITS[unit]) if match else 0
    except (ValueError, KeyError):
        size = 0
    if size < LEAST_MEMORY:
        raise OptionError(f"memory must be a size of at least 100MB such as 4GB, not {text!r}")
    return size
