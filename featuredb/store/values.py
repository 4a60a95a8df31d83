"""How a Parquet column of activations is encoded."""

from __future__ import annotations

import numpy as np

from featuredb.store.schemas import FloatArray

MOST_DISTINCT = 512
"""Distinct values up to which a dictionary is smaller than the values: 9 bits an activation."""

_SEEN = 1 << 15


def value_encoding(values: FloatArray) -> str | None:
    """Parquet's encoding for activations like `values`; None for a dictionary.

    Values on a logarithmic grid are few, and a dictionary makes them a byte each or less. Others
    are plain as float16, where compression finds little more in any other way, and as float32
    split into streams of bytes, of which those that rounding left empty take no space.
    """
    bits = values[:_SEEN].view(f"u{values.dtype.itemsize}")
    if len(np.unique(bits)) <= MOST_DISTINCT:
        return None
    return "PLAIN" if values.dtype == np.float16 else "BYTE_STREAM_SPLIT"
