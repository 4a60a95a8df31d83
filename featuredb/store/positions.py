"""Positions: a context and a token index in one uint32, local to a segment.

    position = (context_id - segment.first_context) << bits | token_index

`bits` is a snapshot's `position_bits`, fixed when a database is created. Functions take and return
integers or arrays alike.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Int = TypeVar("Int", bound=Any)


def position_bits(context_size: int) -> int:
    """Low bits of a position that hold the token index: the fewest that fit `context_size`."""
    return max(1, (context_size - 1).bit_length())


def token_mask(bits: int) -> int:
    """The bits of a position that are the token index."""
    return (1 << bits) - 1


def pack(context: Int, token_index: Int, bits: int) -> Int:
    """Position of a token. context: counted from the segment's first."""
    position: Int = (context << bits) | token_index
    return position


def context_of(position: Int, bits: int) -> Int:
    """Context of a position, counted from the segment's first."""
    context: Int = position >> bits
    return context


def token_of(position: Int, bits: int) -> Int:
    """Token index of a position."""
    token_index: Int = position & token_mask(bits)
    return token_index


def stride_of(n_contexts: int, bits: int) -> int:
    """What is added to positions from one feature to the next, modulo 2**32.

    With it positions rise through a whole by-feature file, modulo 2**32. Without it they would
    fall back at every feature: a step that widens 128 of the deltas around it, 0.09 bytes per
    activation where features have 1,200 activations each, 0.19 where they have 660.
    """
    return (n_contexts << bits) % (1 << 32)


def without_stride(
    position: npt.NDArray[np.uint32], feature: int | npt.NDArray[np.uint32], stride: int
) -> npt.NDArray[np.uint32]:
    """Positions uint32 [n] as they were before the stride. feature: whose they are, one or [n]."""
    if isinstance(feature, int):
        return position - np.uint32(feature * stride % (1 << 32))
    return position - feature * np.uint32(stride)
