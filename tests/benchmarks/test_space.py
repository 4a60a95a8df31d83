"""The entropy floor that `benchmarks.space` prints, on activations with a known entropy."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.space import floor_of
from featuredb.store.by_feature import FeatureRows

TOKENS = 4_096


def rows(features: list[int], counts: list[int], values: list[float]) -> FeatureRows:
    n = sum(counts)
    return FeatureRows(
        np.repeat(np.array(features, np.uint32), counts),
        np.zeros(n, np.uint32),
        np.resize(np.array(values, np.float16), n),
    )


def test_a_feature_on_half_of_the_tokens_costs_two_bits_a_position() -> None:
    floor = floor_of([rows([3], [TOKENS // 2], [1, 2, 3, 4])], TOKENS)
    assert floor.position == pytest.approx(2.0)
    assert floor.value == pytest.approx(2.0)
    assert floor.value_given_feature == pytest.approx(2.0)
    assert floor.bytes == pytest.approx(0.5)


def test_a_feature_that_always_fires_needs_no_positions() -> None:
    assert floor_of([rows([0], [TOKENS], [1])], TOKENS).position == 0.0


def test_features_with_values_of_their_own_share_no_value() -> None:
    """Two features, each with one value: the value is known from the feature, not without it."""
    pieces = [rows([0], [TOKENS // 2], [1.0]), rows([1], [TOKENS // 2], [2.0])]
    floor = floor_of(pieces, TOKENS)
    assert floor.value == pytest.approx(1.0)
    assert floor.value_given_feature == pytest.approx(0.0)
    assert floor_of([rows([0, 1], [TOKENS // 2] * 2, [1.0])], TOKENS).value == pytest.approx(0.0)


def test_rare_features_cost_more() -> None:
    """H(p) / p for each, weighted by activations."""
    floor = floor_of([rows([0, 1], [1, TOKENS // 4], [1.0])], TOKENS)

    def bits(p: float) -> float:
        return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))

    wanted = TOKENS * (bits(1 / TOKENS) + bits(0.25)) / (1 + TOKENS // 4)
    assert floor.position == pytest.approx(wanted)
