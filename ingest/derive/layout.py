"""Points in the plane that keep neighbors together: UMAP of a graph (McInnes et al. 2018).

The neighbor graph is given, so this is the second half of UMAP alone: how near is near (algorithm
3), the fuzzy union, and the stochastic gradient descent of algorithm 5, by one thread and a
generator of its own. The same graph gives the same points.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

EPOCHS = 200
_NEGATIVE = 5
"""Random points that each pull on an edge pushes away from."""

_A, _B = 1.5769434603, 0.8950608779
"""1 / (1 + a d^2b) is nearest to exp(-(d - 0.1)), the curve of min_dist 0.1 and spread 1."""

_EXTENT = 10.0


class Graph(NamedTuple):
    """Neighbors of n points: those of point i are entries starts[i] to starts[i + 1].

    distance: not below 0, ascending for each point.
    """

    starts: Int64
    neighbor: Int64
    distance: Float64

    @property
    def n(self) -> int:
        """How many points."""
        return len(self.starts) - 1


def layout(graph: Graph, start: Float64, epochs: int = EPOCHS) -> npt.NDArray[np.float32]:
    """Float32 [n, 2]. start: [n, 2], where points are before the descent, in any unit."""
    spread = np.abs(start - start.mean(axis=0)).max(initial=0.0) or 1.0
    points = np.ascontiguousarray((start - start.mean(axis=0)) * (_EXTENT / spread))
    weights = _weights(graph.starts, graph.distance)
    head, tail, weight = _union(graph, weights)
    # An edge too weak to be drawn once is none.
    kept = weight >= weight.max(initial=0.0) / epochs
    head, tail, weight = head[kept], tail[kept], weight[kept]
    if len(weight):
        _descend(points, head, tail, weight.max() / weight, epochs)
    return points.astype(np.float32)


@nb.njit(cache=True)
def _weights(starts: Int64, distance: Float64) -> Float64:
    """Of each entry exp(-(d - nearest) / sigma), sigma such that they sum to log2 of their number.

    The smallest sigma is a thousandth of the mean distance, as in UMAP.
    """
    weights = np.zeros(len(distance))
    overall = distance.mean() if len(distance) else 0.0
    for i in range(len(starts) - 1):
        own = distance[starts[i] : starts[i + 1]]
        if len(own) == 0:
            continue
        target = np.log2(max(2, len(own)))
        nearest = 0.0
        for d in own:
            if d > 0.0:
                nearest = d
                break
        low, high, sigma = 0.0, np.inf, 1.0
        for _ in range(64):
            total = 0.0
            for d in own:
                total += np.exp(-max(0.0, d - nearest) / sigma)
            if abs(total - target) < 1e-5:
                break
            if total > target:
                high = sigma
                sigma = (low + high) / 2
            else:
                low = sigma
                sigma = sigma * 2 if np.isinf(high) else (low + high) / 2
        mean = own.mean()
        sigma = max(sigma, 1e-3 * (mean if nearest > 0.0 else overall))
        for j in range(len(own)):
            beyond = own[j] - nearest
            weights[starts[i] + j] = 1.0 if beyond <= 0 or sigma == 0 else np.exp(-beyond / sigma)
    return weights


def _union(graph: Graph, weights: Float64) -> tuple[Int64, Int64, Float64]:
    """(from, to, weight) of every edge in both directions, by (from, to): w + v - w v."""
    n = graph.n
    head = np.repeat(np.arange(n, dtype=np.int64), np.diff(graph.starts))
    apart = head != graph.neighbor
    head, tail, own = head[apart], graph.neighbor[apart], weights[apart]
    both = np.unique(np.concatenate([head * n + tail, tail * n + head]))
    there = np.zeros(len(both))
    there[np.searchsorted(both, head * n + tail)] = own
    back = np.zeros(len(both))
    back[np.searchsorted(both, tail * n + head)] = own
    return both // n, both % n, there + back - there * back


@nb.njit(cache=True)
def _descend(points: Float64, head: Int64, tail: Int64, every: Float64, epochs: int) -> None:
    """Move `points`. every: epochs between two pulls on each edge, 1 for the strongest."""
    n = len(points)
    state = np.uint64(0x9E3779B97F4A7C15)
    due = every.copy()
    for epoch in range(epochs):
        rate = 1.0 - epoch / epochs
        for edge in range(len(head)):
            if due[edge] > epoch + 1:
                continue
            due[edge] += every[edge]
            i, j = head[edge], tail[edge]
            x, y = points[i, 0] - points[j, 0], points[i, 1] - points[j, 1]
            square = x * x + y * y
            if square > 0.0:
                power = square**_B
                pull = -2.0 * _A * _B * power / square / (_A * power + 1.0)
                x, y = _step(pull * x) * rate, _step(pull * y) * rate
                points[i, 0] += x
                points[i, 1] += y
                points[j, 0] -= x
                points[j, 1] -= y
            for _ in range(_NEGATIVE):
                # xorshift64, Marsaglia 2003
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                k = np.int64(state % np.uint64(n))
                if k == i:
                    continue
                x, y = points[i, 0] - points[k, 0], points[i, 1] - points[k, 1]
                square = x * x + y * y
                if square > 0.0:
                    push = 2.0 * _B / ((0.001 + square) * (_A * square**_B + 1.0))
                    points[i, 0] += _step(push * x) * rate
                    points[i, 1] += _step(push * y) * rate
                else:
                    points[i, 0] += 4.0 * rate
                    points[i, 1] += 4.0 * rate


@nb.njit(cache=True)
def _step(value: float) -> float:
    return min(4.0, max(-4.0, value))
