"""Rounding of stored activations, and the layout of positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featuredb.store.positions import position_bits
from featuredb.store.values import FLOAT16_TINY, LOG8_ERROR, stored_values

nonzero = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda v: v != 0)


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_stored_values_round_to_nearest_and_never_vanish(values: np.ndarray) -> None:
    kept = stored_values(values)
    for value, stored in zip(values, kept, strict=True):
        with np.errstate(over="ignore"):
            half = np.float16(value)
        if half == 0:
            assert abs(float(stored)) == FLOAT16_TINY
            assert np.sign(stored) == np.sign(value)
        elif np.isinf(half):
            assert stored == value
        else:
            assert stored == half


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_what_is_stored_for_a_value_does_not_depend_on_the_others(values: np.ndarray) -> None:
    together = stored_values(values).astype(np.float32)
    alone = [float(stored_values(values[i : i + 1])[0]) for i in range(len(values))]
    assert together.tolist() == alone


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_log8_is_off_by_no_more_than_it_says(values: np.ndarray) -> None:
    kept = stored_values(values, "log8").astype(np.float64)
    exact = values.astype(np.float64)
    assert np.isfinite(kept).all()
    assert (np.sign(kept) == np.sign(exact)).all()
    coarse = np.abs(exact) < 2.0**-14
    allowed = LOG8_ERROR * np.abs(exact) + np.where(coarse, 2.0**-24, 0)
    # Beyond the last point of the grid there is only float32's largest number.
    assert (np.abs(kept - exact) <= allowed).all()


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_log8_takes_the_nearest_of_16_values_per_octave(values: np.ndarray) -> None:
    kept = stored_values(values, "log8")
    for value, stored in zip(values, kept, strict=True):
        k = int(np.floor(np.log2(abs(float(value))) * 16))
        near = [2.0 ** (i / 16) for i in range(k - 1, k + 3)]
        point = min(near, key=lambda p: abs(p - abs(float(value))))
        point = min(point, float(np.finfo(np.float32).max))
        wanted = stored_values(np.array([np.copysign(point, value)], np.float32))[0]
        assert float(stored) == pytest.approx(float(wanted), rel=2.0**-23)


@given(arrays(np.float32, st.integers(1, 20), elements=nonzero))
def test_log8_is_the_same_whatever_is_beside_it_and_when_done_again(values: np.ndarray) -> None:
    together = stored_values(values, "log8").astype(np.float32)
    alone = [float(stored_values(values[i : i + 1], "log8")[0]) for i in range(len(values))]
    assert together.tolist() == alone
    assert stored_values(together, "log8").astype(np.float32).tolist() == alone


def test_log8_of_sixteen_octaves_fits_eight_bits() -> None:
    values = np.exp2(np.random.default_rng(0).uniform(-8, 7.9, 100_000)).astype(np.float32)
    kept = stored_values(values, "log8")
    assert kept.dtype == np.float16
    assert len(np.unique(kept)) <= 256


def test_exact_keeps_float32() -> None:
    values = np.array([1 / 3, 1e-20, 1e20], np.float32)
    assert stored_values(values, "float32") is values


@pytest.mark.parametrize(
    ("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (128, 7), (129, 8), (256, 8), (257, 9)]
)
def test_position_bits_hold_every_token_index(size: int, bits: int) -> None:
    assert position_bits(size) == bits
    assert size - 1 < 1 << bits
