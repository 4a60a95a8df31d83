"""Worlds of SAEs that recorded different tokens, and how features go together in them, slowly."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.make_store import World, stored
from tests.oracle import Row
from tests.queries.worlds import POOL, made_world


def uneven_worlds(max_saes: int = 3) -> st.SearchStrategy[World]:
    """Worlds in which SAEs differ in sinks, excluded tokens and contexts read, or do not."""
    return st.integers(0, POOL - 1).map(lambda seed: _uneven(seed, max_saes))


@cache
def _uneven(seed: int, max_saes: int) -> World:
    world = made_world(seed, max_saes)
    rng = np.random.default_rng((seed, max_saes))
    first = int(world.bos is not None)
    places = [(c, t) for c, ids in enumerate(world.contexts) for t in range(first, len(ids))]
    saes = []
    for sae in world.saes:
        if rng.random() < 0.5:
            saes.append(sae)
            continue
        end = (None, len(world.contexts) // 2, 0)[rng.integers(3)]
        excluded = tuple(sorted(rng.choice(5, rng.integers(3), replace=False).tolist()))
        sinks = frozenset(
            (c, t)
            for c, t in places
            if rng.random() < 0.2
            and (end is None or c < end)
            and world.contexts[c][t] not in excluded
        )
        saes.append(replace(sae, sinks=sinks, excluded=excluded, end=end))
    return replace(world, saes=saes)


class Together:
    """Which units a feature is active in, among those that two SAEs have both."""

    def __init__(self, world: World, one: str, other: str) -> None:
        saes = {sae.name: sae for sae in world.saes}
        both = [saes[one], saes[other]]
        self.tokens = {
            (c, t)
            for c in range(len(world.contexts))
            for t in set(world.recorded(both[0], c)) & set(world.recorded(both[1], c))
        }
        self.document_of = [d for d, cs in enumerate(world.documents) for _ in cs]
        self.dense = {sae.name: stored(world, sae) for sae in both}

    def n(self, unit: str) -> int:
        return len(
            self.tokens if unit == "token" else {self.document_of[c] for c, _ in self.tokens}
        )

    def active(self, sae: str, feature: int, unit: str) -> set[Any]:
        tokens = {(c, t) for c, t in self.tokens if self.dense[sae][c][t, feature] != 0}
        return tokens if unit == "token" else {self.document_of[c] for c, _ in tokens}

    def measured(self, a: set[Any], b: set[Any], unit: str) -> Row:
        """The counts and measures of two sets of units."""
        n, both = self.n(unit), len(a & b)
        cells = [[both, len(a - b)], [len(b - a), n - len(a | b)]]
        return {
            "both": both,
            "a_only": len(a - b),
            "b_only": len(b - a),
            "neither": n - len(a | b),
            "p_b_given_a": both / len(a) if a else None,
            "p_a_given_b": both / len(b) if b else None,
            "jaccard": both / len(a | b) if a | b else None,
            "npmi": _npmi(both, len(a), len(b), n),
            "phi": _phi(cells),
            "g2": _g2(cells),
        }


def _npmi(both: int, a: int, b: int, n: int) -> float | None:
    """Bouma 2009: ln(p(x, y) / (p(x) p(y))) / -ln p(x, y)."""
    if not a or not b or both == n:
        return None
    if not both:
        return -1.0
    together = both / n
    return math.log(together / (a / n * (b / n))) / -math.log(together)


def _phi(cells: list[list[int]]) -> float | None:
    """The correlation coefficient of the two indicators, unit by unit."""
    x = [1] * sum(cells[0]) + [0] * sum(cells[1])
    y = [1] * cells[0][0] + [0] * cells[0][1] + [1] * cells[1][0] + [0] * cells[1][1]
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _g2(cells: list[list[int]]) -> float:
    n = sum(map(sum, cells))
    total = 0.0
    for i in (0, 1):
        for j in (0, 1):
            expected = sum(cells[i]) * (cells[0][j] + cells[1][j]) / n if n else 0
            if cells[i][j]:
                total += 2 * cells[i][j] * math.log(cells[i][j] / expected)
    return total


def chi_squared_tail(g2: float, steps: int = 200_000) -> float:
    """P(X > g2), one degree of freedom: twice the normal density's integral from sqrt(g2) on."""
    low = math.sqrt(g2)
    x = np.linspace(low, low + 14, steps)
    return float(2 * np.trapezoid(np.exp(-x * x / 2) / math.sqrt(2 * math.pi), x))


def close(row: Row, decimals: float = 1e-9) -> Row:
    """The row, floating-point values to be compared approximately."""
    import pytest

    return {
        k: pytest.approx(v, rel=1e-9, abs=decimals) if isinstance(v, float) else v
        for k, v in row.items()
    }
