"""Host memory: the budget an operation works within, and returning what was freed."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from featuredb.errors import OptionError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Budget:
    """A bound on host memory, in bytes."""

    bytes: int

    LEAST: ClassVar[int] = 100 * 10**6
    """The least possible limit: the libraries take as much."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a size such as ``4GB``, ``500MB`` or ``1GiB``.

        Args:
            text: A number and its unit. A number alone, also as an int, is bytes.

        Returns:
            The budget. GiB and GB are the same, 10^9 bytes.

        Raises:
            OptionError: `text` is not a size, or is less than `LEAST`.
        """
        match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?i?B?)\s*", str(text), re.IGNORECASE)
        unit = match[2].upper().replace("I", "") if match else ""
        unit = unit if unit.endswith("B") or not unit else f"{unit}B"
        try:
            size = int(float(match[1]) * _UNITS[unit]) if match else 0
        except (ValueError, KeyError):
            size = 0
        if size < cls.LEAST:
            raise OptionError(f"memory must be a size of at least 100MB such as 4GB, not {text!r}")
        return cls(size)


def return_freed_memory() -> None:
    """Return freed memory to the OS.

    Allocators keep freed memory for later. Between two steps with different needs, what each of
    them keeps adds up. Only glibc keeps enough to matter, in one heap per thread.
    """
    # Imported here because the options of a command use `Budget`, and help must be quick.
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], Any] | None:
    """glibc's ``malloc_trim``, None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
