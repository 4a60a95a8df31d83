"""Rules on the activations of texts that lie dense in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from queries.rules import silence
from queries.rules.tree import (
    FIRES,
    Compare,
    Condition,
    Every,
    Extreme,
    Feature,
    Lasting,
    Mean,
    Not,
    Number,
    Open,
    Role,
    RunningPeak,
    Some,
    Sum,
    Value,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_SIGNS = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
    FIRES: np.not_equal,
}


@dataclass(frozen=True)
class Tokens:
    """All tokens of some texts, one text after another.

    activations: float64 [features, n], 0 where silent or not recorded. first: int64 [n], the place
    of the first token of each token's text. roles: object [n] of texts and None, or None.
    """

    activations: Floats
    first: npt.NDArray[np.int64]
    roles: npt.NDArray[np.object_] | None = None
    place: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", np.arange(len(self.first)))

    def __len__(self) -> int:
        return len(self.first)


def holds(tree: Condition, tokens: Tokens) -> Bools:
    """Where a condition holds, bool [n]."""
    match tree:
        case Compare(left, sign, right):
            held: Bools = _SIGNS[sign](value(left, tokens), value(right, tokens))
            return held
        case Role(name):
            if tokens.roles is None:
                return np.zeros(len(tokens), bool)
            return np.asarray(tokens.roles == name, bool)
        case Every(conditions):
            return np.asarray(np.logical_and.reduce([holds(c, tokens) for c in conditions]))
        case Some(conditions):
            return np.asarray(np.logical_or.reduce([holds(c, tokens) for c in conditions]))
        case Not(condition):
            return ~holds(condition, tokens)
        case Lasting(condition, n):
            failing = ~holds(condition, tokens)
            before = silence.before_text(condition)
            return np.asarray(_over(failing.astype(np.float64), n, float(not before), tokens) == 0)


def value(node: Value, tokens: Tokens) -> Floats:
    """A number at each token, float64 [n]."""
    match node:
        case Feature(index):
            return np.asarray(tokens.activations[index])
        case Number(constant):
            return np.full(len(tokens), constant)
        case Open():
            return np.full(len(tokens), np.nan)
        case Sum(weights, parts):
            total = weights[0] * value(parts[0], tokens)
            for weight, part in zip(weights[1:], parts[1:], strict=True):
                total = total + weight * value(part, tokens)
            return total
        case Extreme(largest, parts):
            choose = np.maximum if largest else np.minimum
            best: Floats = choose.reduce([value(p, tokens) for p in parts])
            return best
        case Mean(inner, n):
            silent = silence.value_of(inner)
            return silent + _over(value(inner, tokens) - silent, n, 0.0, tokens) / n
        case RunningPeak(inner):
            return _peak(value(inner, tokens), silence.value_of(inner), tokens)


def _over(x: Floats, n: int, before: float, tokens: Tokens) -> Floats:
    """The sum over the last n tokens. before: of each token before the text."""
    total = np.zeros(len(x))
    for back in range(min(n, len(x))):
        inside = tokens.place - back >= tokens.first
        total += np.where(inside, np.roll(x, back), before)
    return total + before * max(0, n - len(x))


def _peak(x: Floats, before: float, tokens: Tokens) -> Floats:
    result = np.empty(len(x))
    starts = np.unique(tokens.first)
    for start, end in zip(starts, [*starts[1:], len(x)], strict=True):
        result[start:end] = np.maximum(np.maximum.accumulate(x[start:end]), before)
    return result
