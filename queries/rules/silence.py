"""What a rule is where all its features are silent: before a text, and between activations."""

from __future__ import annotations

from queries.rules.tree import (
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


def value_of(node: Value) -> float:
    """A number where every feature is 0."""
    match node:
        case Number(value):
            return value
        case Feature() | Open():
            return 0.0
        case Sum(weights, values):
            total = weights[0] * value_of(values[0])
            for weight, value in zip(weights[1:], values[1:], strict=True):
                total += weight * value_of(value)
            return total
        case Extreme(largest, values):
            return (max if largest else min)(map(value_of, values))
        case Mean(value, _) | RunningPeak(value):
            return value_of(value)


def before_text(node: Condition) -> bool:
    """Whether a condition counts as true before a text, where there is nobody whose role it is."""
    match node:
        case Compare(left, sign, right):
            one, two = value_of(left), value_of(right)
            return {">": one > two, ">=": one >= two, "<": one < two, "<=": one <= two}.get(
                sign, one != two
            )
        case Role():
            return False
        case Every(conditions):
            return all(map(before_text, conditions))
        case Some(conditions):
            return any(map(before_text, conditions))
        case Not(condition):
            return not before_text(condition)
        case Lasting(condition, _):
            return before_text(condition)
