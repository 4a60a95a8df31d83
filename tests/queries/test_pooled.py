"""The order of pairs of a feature and a unit, against numpy's own sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from queries.pooled import pairs_of, stable_order

HALVES = st.floats(2.0**-14, 65_504, width=16)
ANY = st.floats(-1e6, 1e6, width=32)
SMALL = st.sampled_from([0.0, -0.0, 2.0**-24, 2.0**-14, 1.0, 65_504.0, 65_520.0])


@settings(max_examples=200)
@given(
    st.one_of(*(st.lists(st.tuples(st.integers(0, 9), v)) for v in (HALVES, ANY, SMALL))),
    st.sampled_from([10, 256, 70_000]),
)
def test_pairs_ascend_by_value_within_a_feature(
    given_pairs: list[tuple[int, float]], n_features: int
) -> None:
    feature = np.array(sorted(f for f, _ in given_pairs), np.int64) * (n_features // 10)
    value = np.array([v for _, v in given_pairs], np.float32)
    unit = np.arange(len(value), dtype=np.int32)
    pairs = pairs_of(range(5, 5 + n_features), feature, unit, value)
    order = np.lexsort((value, feature))  # stable
    assert pairs.unit.tolist() == unit[order].tolist()
    assert pairs.value.tolist() == value[order].tolist()
    assert pairs.feature.tolist() == feature.tolist()
    assert (pairs.first, pairs.end) == (5, 5 + n_features)


@given(st.lists(st.integers(0, 2**64 - 1)), st.sampled_from([1, 16, 17, 40, 64]))
def test_keys_of_any_width(keys: list[int], bits: int) -> None:
    key = np.array([k >> (64 - bits) for k in keys], np.uint64)
    assert stable_order(key, bits).tolist() == np.argsort(key, kind="stable").tolist()
