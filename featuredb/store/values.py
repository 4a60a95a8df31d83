"""Rounding of activations, and their Parquet encoding.

numpy is imported inside the functions: the command line takes the names from here and must start
without it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from featuredb.store.schemas import FloatArray

Values = Literal["float16", "float32", "log8"]
"""See `stored_values`."""

FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-24
"""Smallest non-zero float16 (subnormal)."""

LOG8_STEPS = 16
"""Values per octave of the log8 grid: a feature whose activations span less than 16 octaves, a
factor of 65,536, takes at most 256 of them: 8 bits each."""

LOG8_ERROR = 0.0222
"""Largest relative error of log8: half a step of the grid, 0.02166, plus the rounding of the grid
to float16, 2**-11. Below 2**-14, where float16 is coarser, an error of at most 2**-24 is added."""

RELATIVE_ERROR: dict[Values, float] = {"float16": 2.0**-11, "float32": 0.0, "log8": LOG8_ERROR}
"""Largest relative error of a stored activation that float16 holds with full precision."""

MOST_DISTINCT = 512
"""Distinct values up to which a dictionary is smaller than the values: 9 bits an activation."""

_SAMPLE = 1 << 15


def stored_values(values: npt.NDArray[np.float32], to: Values = "float16") -> FloatArray:
    """Round activations to the stored values.

    Args:
        values: float32 [n], all non-zero and finite.
        to: what they are rounded to. For ``log8`` they are first rounded to the nearest
            2**(k / LOG8_STEPS), k an integer. For ``float32`` they are returned as they are.

    Returns:
        float16 [n], each rounded to nearest, except that a non-zero value never becomes zero (it
        becomes the smallest subnormal of its sign). If any magnitude overflows float16 the result
        is float32 [n]: that value exact, the others still rounded to float16, so that the stored
        value of a token never depends on the other tokens in its file.
    """
    import numpy as np

    if to == "float32":
        return values
    if to == "log8":
        values = _on_the_grid(values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    vanished = half == 0
    if vanished.any():
        half[vanished] = np.copysign(np.float16(FLOAT16_TINY), values[vanished])
    overflow = ~np.isfinite(half)
    if overflow.any():
        wide = half.astype(np.float32)
        wide[overflow] = values[overflow]
        return wide
    return half


def value_encoding(values: FloatArray) -> str | None:
    """Choose Parquet's encoding for activations like `values`. None means a dictionary.

    A logarithmic grid has few values, so a dictionary takes a byte each or less. Other float16
    values are PLAIN, since compression gains little in any other encoding. Other float32 values are
    split into streams of bytes: the streams that rounding left empty take no space.
    """
    import numpy as np

    bits = values[:_SAMPLE].view(f"u{values.dtype.itemsize}")
    if len(np.unique(bits)) <= MOST_DISTINCT:
        return None
    return "PLAIN" if values.dtype == np.float16 else "BYTE_STREAM_SPLIT"


class _Grid(NamedTuple):
    """The log8 grid from 1 to 2, as fractions of a float32.

    points: uint32 [LOG8_STEPS + 1]. The last carries into the exponent. middles: uint32, between
    neighboring points. below: uint8 [256], how many middles lie at or below each multiple of 2**-8.
    largest: bits of the largest float32.
    """

    points: npt.NDArray[np.uint32]
    middles: npt.NDArray[np.uint32]
    below: npt.NDArray[np.uint8]
    largest: np.uint32


@cache
def _grid() -> _Grid:
    """Compute the grid once."""
    import numpy as np

    points = 2.0 ** (np.arange(LOG8_STEPS + 1) / LOG8_STEPS) - 1
    middles = np.append(np.ceil((points[1:] + points[:-1]) * 2**22), 2**23).astype(np.uint32)
    below = np.searchsorted(middles[:-1], np.arange(256) << 15, side="right").astype(np.uint8)
    largest = np.float32(np.finfo(np.float32).max).view(np.uint32)
    return _Grid(np.round(points * 2**23).astype(np.uint32), middles, below, largest)


def _on_the_grid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round each of `values` to the nearest 2**(k / LOG8_STEPS) of its sign.

    Works on the bits. The grid is the same in every octave, so the fraction alone decides. Its
    first 8 bits give the two candidates: neighboring points are further apart than that.
    """
    import numpy as np

    grid = _grid()
    bits = values.view(np.uint32)
    fraction = bits & np.uint32((1 << 23) - 1)
    step = grid.below[fraction >> np.uint32(15)]
    step += fraction >= grid.middles[step]
    magnitude = (bits & np.uint32(0xFF << 23)) + grid.points[step]
    np.minimum(magnitude, grid.largest, out=magnitude)
    rounded: npt.NDArray[np.float32] = ((bits & np.uint32(1 << 31)) | magnitude).view(np.float32)
    return rounded
