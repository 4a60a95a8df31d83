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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@cache
def keep_freed_memory() -> bool:
    """Let the process keep large freed blocks for its next large allocations.

    By default glibc gets each large array from the kernel and returns it there, and every page of
    the next one is a page fault: up to a third of an ingest's time on a CPU. Threads share one
    heap, as that of a thread ends at 64 MB. `return_freed_memory` still empties it.

    Returns:
        Whether the C library has such settings: only glibc has.
    """
    setting = _glibc("mallopt")
    if setting is None:
        return False
    most = 2**31 - 1
    values = {_M_MMAP_THRESHOLD: most, _M_TRIM_THRESHOLD: most, _M_ARENA_MAX: 1}
    return all(setting(name, value) == 1 for name, value in values.items())


@cache
def _trim() -> Callable[[int], Any] | None:
    """glibc's ``malloc_trim``, None with another C library."""
    return _glibc("malloc_trim")


def _glibc(name: str) -> Callable[..., Any] | None:
    """A function that only glibc has."""
    try:
        library = ctypes.CDLL(None)
        function: Callable[..., Any] = getattr(library, name)
        return function if hasattr(library, "gnu_get_libc_version") else None
    except (AttributeError, OSError, TypeError):
        return None
