"""What a rule can be at all: its values and its truth for all activations within bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from queries.rules import evaluate
from queries.rules.tree import (
    WINDOWS,
    Compare,
    Condition,
    Every,
    Extreme,
    Feature,
    Lasting,
    Mean,
    Node,
    Not,
    Number,
    Open,
    Role,
    RunningPeak,
    Some,
    Sum,
    Value,
    nodes,
)

Interval = tuple[float, float]

_MOST_CASES = 20_000


class Truth(NamedTuple):
    """Whether a condition can hold, and whether it can fail. Where neither is sure, both."""

    can_hold: bool
    can_fail: bool


def decided(tree: Condition, negative: Sequence[bool]) -> bool | None:
    """True for a rule that always holds, False for one that never can, None for all others.

    Exact where features are compared with numbers. Elsewhere a rule may be decided and not be
    known to be. negative: whether each feature can be below 0.
    """
    within = [(-math.inf if below else 0.0, math.inf) for below in negative]
    result = truth(tree, within)
    if not result.can_hold or not result.can_fail:
        return result.can_hold
    cases = _cases(tree, negative)
    if cases is None:
        return None
    found = {bool(held) for held in cases}
    return found.pop() if len(found) == 1 else None


def truth(tree: Condition, within: Sequence[Interval]) -> Truth:
    """What a condition can be for activations within bounds, one pair per feature."""
    match tree:
        case Compare(left, sign, right) if left == right and not _has_windows(left):
            return Truth(sign in (">=", "<="), sign not in (">=", "<="))
        case Compare(left, sign, right):
            return _compared(values(left, within), sign, values(right, within))
        case Role():
            return Truth(True, True)
        case Every(conditions):
            each = [truth(c, within) for c in conditions]
            return Truth(all(t.can_hold for t in each), any(t.can_fail for t in each))
        case Some(conditions):
            each = [truth(c, within) for c in conditions]
            return Truth(any(t.can_hold for t in each), all(t.can_fail for t in each))
        case Not(condition):
            result = truth(condition, within)
            return Truth(result.can_fail, result.can_hold)
        case Lasting(condition, _):
            return truth(condition, within)


def _has_windows(tree: Node) -> bool:
    return any(isinstance(node, WINDOWS) for node in nodes(tree))


def values(node: Value, within: Sequence[Interval]) -> Interval:
    """The smallest and the largest a number can be."""
    match node:
        case Feature(index):
            return within[index]
        case Number(value):
            return value, value
        case Open():
            return -math.inf, math.inf
        case Sum(weights, parts):
            ends = [
                sorted((_times(w, low), _times(w, high)))
                for w, (low, high) in zip(weights, (values(p, within) for p in parts), strict=True)
            ]
            return sum(e[0] for e in ends), sum(e[1] for e in ends)
        case Extreme(largest, parts):
            choose = max if largest else min
            lows, highs = zip(*(values(p, within) for p in parts), strict=True)
            return choose(lows), choose(highs)
        case Mean(value, _) | RunningPeak(value):
            return values(value, within)


def _times(weight: float, end: float) -> float:
    return 0.0 if weight == 0 else weight * end


def _compared(left: Interval, sign: str, right: Interval) -> Truth:
    (low, high), (least, most) = left, right
    match sign:
        case ">":
            return Truth(high > least, low <= most)
        case ">=":
            return Truth(high >= least, low < most)
        case "<":
            return Truth(low < most, high >= least)
        case "<=":
            return Truth(low <= most, high > least)
    return Truth(not low == high == least == most, low <= most and least <= high)


def _cases(tree: Condition, negative: Sequence[bool]) -> Sequence[bool] | None:
    """Its truth in every case there is, None where features meet, windows are, or it has many."""
    if _has_windows(tree):
        return None
    bounds: list[set[float]] = [{0.0} for _ in negative]
    roles = [node.name for node in nodes(tree) if isinstance(node, Role)]
    for node in nodes(tree):
        if isinstance(node, Compare):
            pair = _feature_and_number(node)
            if pair is None:
                return None
            bounds[pair[0]].add(pair[1])
    choices = [
        [x for x in _between(sorted(b)) if x >= 0 or below]
        for b, below in zip(bounds, negative, strict=True)
    ]
    said = [*dict.fromkeys(roles), None]
    if math.prod(map(len, choices)) * len(said) > _MOST_CASES:
        return None
    rows = list(product(*choices, said))
    columns = np.array([row[:-1] for row in rows], np.float64).T
    spoken = np.array([row[-1] for row in rows], object)
    held = evaluate.holds(tree, evaluate.Tokens(columns, np.arange(len(rows)), spoken))
    return [bool(each) for each in held]


def _feature_and_number(node: Compare) -> tuple[int, float] | None:
    for one, two in ((node.left, node.right), (node.right, node.left)):
        if isinstance(one, Feature) and isinstance(two, Number):
            return one.index, two.value
    return None


def _between(ends: Sequence[float]) -> list[float]:
    """The bounds themselves, and a number in each interval between them and beyond."""
    middles = [(a + b) / 2 for a, b in pairwise(ends)]
    return sorted({*ends, *middles, ends[0] - 1, ends[-1] + max(1.0, abs(ends[-1]))})
