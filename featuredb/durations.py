"""Lengths of time as people write them: ``30m``, ``1h``, ``2d``."""

from __future__ import annotations

import re
from datetime import timedelta

from featuredb.errors import OptionError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration_of(text: str) -> timedelta:
    """A number and its unit, s, m, h or d. Raises `OptionError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if match is None:
        raise OptionError(f"a time must be a number and s, m, h or d, as in 1h, not {text!r}")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})
