"""What a stored activation is, and how positions are laid out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featuredb import schemas

nonzero = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda v: v != 0)


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_stored_values_round_to_nearest_and_never_vanish(values: np.ndarray) -> None:
    kept = schemas.stored(values)
    for value, stored in zip(values, kept, strict=True):
        with np.errstate(over="ignore"):
            half = np.float16(value)
        if half == 0:
            assert abs(float(stored)) == schemas.FLOAT16_TINY
            assert np.sign(stored) == np.sign(value)
        elif np.isinf(half):
            assert stored == value
        else:
            assert stored == half


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_what_is_stored_for_a_value_does_not_depend_on_the_others(values: np.ndarray) -> None:
    together = schemas.stored(values).astype(np.float32)
    alone = [float(schemas.stored(values[i : i + 1])[0]) for i in range(len(values))]
    assert together.tolist() == alone


def test_exact_keeps_float32() -> None:
    values = np.array([1 / 3, 1e-20, 1e20], np.float32)
    assert schemas.stored(values, exact=True) is values


@pytest.mark.parametrize(
    ("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (128, 7), (129, 8), (256, 8), (257, 9)]
)
def test_position_bits_hold_every_token_index(size: int, bits: int) -> None:
    assert schemas.position_bits(size) == bits
    assert size - 1 < 1 << bits
