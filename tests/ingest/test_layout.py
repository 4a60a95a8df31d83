"""The map's layout against slow definitions, and what it must keep."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ingest.derive.layout import Graph, _union, _weights, layout

Array = npt.NDArray[np.float64]
_K = 10


def _graph(vectors: Array, k: int = _K) -> Graph:
    """The exact nearest by cosine, not itself."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    k = min(k, len(vectors) - 1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    starts = np.arange(len(vectors) + 1, dtype=np.int64) * k
    values = np.take_along_axis(distance, nearest, 1)
    return Graph(starts, nearest.ravel().astype(np.int64), np.maximum(0, values).ravel())


@pytest.fixture(scope="module")
def clustered() -> tuple[Array, npt.NDArray[np.int64]]:
    """Ten clusters of forty, and which each is in."""
    rng = np.random.default_rng(0)
    which = np.repeat(np.arange(10), 40)
    return rng.normal(size=(10, 32))[which] + 0.4 * rng.normal(size=(400, 32)), which


def test_weights_and_union_are_the_papers(clustered: tuple[Array, npt.NDArray[np.int64]]) -> None:
    graph = _graph(clustered[0][::4])
    weights = _weights(graph.starts, graph.distance)
    by_point = weights.reshape(-1, _K)
    assert np.allclose(by_point.sum(axis=1), np.log2(_K), atol=1e-4)
    assert np.all(by_point[:, 0] == 1)
    distance = graph.distance.reshape(-1, _K)
    # exp(-(d - nearest) / sigma): its logarithm is linear in d.
    ratio = np.log(by_point[:, 1:]) / (distance[:, 1:] - distance[:, :1])
    assert np.allclose(ratio, ratio[:, :1], rtol=1e-6)
    n = graph.n
    dense = np.zeros((n, n))
    dense[np.repeat(np.arange(n), _K), graph.neighbor] = weights
    expected = dense + dense.T - dense * dense.T
    head, tail, weight = _union(graph, weights)
    found = np.zeros((n, n))
    found[head, tail] = weight
    assert np.allclose(found, expected)
    assert len(head) == np.count_nonzero(expected)


def test_neighbors_stay_neighbors_and_the_map_is_the_same_each_time(
    clustered: tuple[Array, npt.NDArray[np.int64]],
) -> None:
    vectors, which = clustered
    graph = _graph(vectors)
    start = np.random.default_rng(1).normal(size=(len(vectors), 2))
    points = layout(graph, start)
    assert points.dtype == np.float32
    assert np.array_equal(points, layout(graph, start))
    apart = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1)[:, :_K]
    assert (which[nearest] == which[:, None]).mean() > 0.95
    kept = [len(set(graph.neighbor[i * _K : (i + 1) * _K]) & set(nearest[i])) for i in range(400)]
    assert np.mean(kept) / _K > 0.3  # by chance 0.025


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points_and_points_without_neighbors(n: int) -> None:
    points = layout(_graph(np.eye(max(2, n))[:n]), np.zeros((n, 2)))
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()
    alone = Graph(np.zeros(n + 1, np.int64), np.empty(0, np.int64), np.empty(0))
    assert np.array_equal(layout(alone, np.zeros((n, 2))), np.zeros((n, 2)))


def test_the_same_direction_twice(clustered: tuple[Array, npt.NDArray[np.int64]]) -> None:
    doubled = np.repeat(clustered[0][:50], 2, axis=0)
    points = layout(_graph(doubled), np.zeros((100, 2)))
    assert np.isfinite(points).all()
