"""Unsigned integer keys that sort as floats do, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

KEYS = 1 << 16
"""Keys of float16 values are below this."""

SIGN = np.uint32(1 << 31)
"""The sign bit of a float32."""

Array = npt.NDArray[Any]

jit = nb.njit(cache=True, nogil=True)


@jit
def key_of_bits(bits: int) -> int:
    """The key of a float16, from its bits. Bits of negative values run backwards."""
    if bits & 0x8000:
        return 0xFFFF - bits
    return bits | 0x8000


@jit
def value_of_key(key: int) -> float:
    """The float16 value of a key."""
    bits = key & 0x7FFF if key & 0x8000 else 0xFFFF - key
    exponent = (bits >> 10) & 0x1F
    fraction = bits & 0x3FF
    size = (1024 + fraction) * 2.0 ** (exponent - 25) if exponent else fraction * 2.0**-24
    return -size if bits & 0x8000 else size


@jit
def key_of_value(value: float) -> int:
    """The key of a value that float16 represents exactly."""
    size = abs(value)
    if size < 2.0**-14:
        bits = int(size * 2.0**24)
    else:
        fraction, exponent = math.frexp(size)
        bits = ((exponent + 14) << 10) + int((fraction * 2.0 - 1.0) * 1024.0)
    return 0xFFFF - (bits | 0x8000) if value < 0 else bits | 0x8000


@jit
def float32_keys(values: Array) -> Array:
    """Keys uint64 below 2**32 of float32 values. Bits of negative values run backwards."""
    bits = values.view(np.uint32)
    ordered = np.empty(len(bits), np.uint64)
    for i in range(len(bits)):
        ordered[i] = ~bits[i] if bits[i] & SIGN else bits[i] | SIGN
    return ordered


@jit
def sorted_keys(keys: Array) -> Array:
    """Sort ascending. Shared, since numba takes seconds to compile each `np.sort`."""
    return np.sort(keys)
