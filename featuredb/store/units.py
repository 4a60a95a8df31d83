"""Durations as people write them: ``30m``, ``1h``, ``2d``. For sizes see `Budget`."""

from __future__ import annotations

import re
from datetime import timedelta

from featuredb.errors import OptionError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration_of(text: str) -> timedelta:
    """Read a duration such as ``1h``.

    Args:
        text: A number and its unit: s, m, h or d.

    Returns:
        The duration.

    Raises:
        OptionError: `text` is not a duration, or more than a `timedelta` holds.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if match is None:
        raise OptionError(f"a time must be a number and s, m, h or d, as in 1h, not {text!r}")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError as error:
        raise OptionError(
            f"a time can be at most {timedelta.max.days}d long, not {text!r}"
        ) from error
