"""Counting puts activations where a sort does, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.synthetic import World
from featuredb.store.by_feature import directory_of
from featuredb.store.by_token import TokenRows
from featuredb.store.feature_order import FeatureOrder
from ingest.extract.runs import Codes, sort_both_ways
from tests.gaps import to_gaps


def check(codes: Codes, order: FeatureOrder) -> None:
    """Against lexsort. codes: the entries of each token adjacent, by feature id."""
    directory = directory_of(np.bincount(codes.feature_id, minlength=len(order.features)))
    by_feature, by_token = sort_both_ways(codes, directory, order)
    sort = np.lexsort((codes.position, codes.feature_id))
    assert bits(by_feature.feature_id) == bits(codes.feature_id[sort].astype(np.uint32))
    assert bits(by_feature.position) == bits(codes.position[sort])
    assert bits(by_feature.activation) == bits(codes.activation[sort])
    sort = np.lexsort((codes.feature_id, codes.position))
    position, counts = np.unique(codes.position, return_counts=True)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    rows = TokenRows(position, offsets, codes.feature_id[sort], codes.activation[sort])
    for mine, theirs in zip(by_token, to_gaps(rows, order), strict=True):
        assert bits(mine) == bits(theirs)
    assert by_feature.feature_id.dtype == by_feature.position.dtype == np.dtype(np.uint32)


def bits(values: Any) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@st.composite
def entries(draw: st.DrawFn) -> tuple[Codes, FeatureOrder]:
    """Tokens in any order, any bits for values, also none at all."""
    d_sae = draw(st.sampled_from([1, 7, 300]))
    kind = draw(st.sampled_from([np.uint16, np.uint32]))
    value = draw(st.sampled_from([np.float16, np.float32]))
    tokens = draw(st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=9))
    features = st.sets(st.integers(0, d_sae - 1), min_size=1, max_size=12)
    fires = [(token, feature) for token in tokens for feature in sorted(draw(features))]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    noise = rng.bytes(len(fires) * np.dtype(value).itemsize)
    codes = Codes(
        np.array([token for token, _ in fires], np.uint32),
        np.array([feature for _, feature in fires], kind),
        np.frombuffer(noise, value),
    )
    return codes, FeatureOrder("", rng.permutation(d_sae).astype(np.uint32))


@settings(deadline=None)  # the first call compiles
@given(entries())
def test_any_entries(given: tuple[Codes, FeatureOrder]) -> None:
    check(*given)


@pytest.mark.parametrize("features", [4_096, 70_000])
def test_activations_like_real_ones(features: int) -> None:
    """Batches run contexts by length, so their tokens come out of order."""
    world = World(1, 20_000, features=features)  # more than one block of tokens
    codes = world.codes(0)
    context = codes.position >> 8
    moved = np.random.default_rng(0).permutation(context.max() + 1)
    sort = np.argsort(moved[context], kind="stable")
    order = FeatureOrder("", np.argsort(-world.density).astype(np.uint32))
    check(Codes(codes.position[sort], codes.feature_id[sort], codes.activation[sort]), order)
