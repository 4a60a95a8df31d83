"""A rule as a tree: numbers over features at a token, and conditions on them.

A *text* is a document, read from its first token. Numbers and conditions have a value at every
token. Where nothing is recorded, at a BOS, a sink, or before the text, every feature is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec


class Feature(msgspec.Struct, frozen=True, tag="feature"):
    """The activation of a feature, 0 where it is silent. index: in the rule's list of features."""

    index: int


class Number(msgspec.Struct, frozen=True, tag="number"):
    """A constant."""

    value: float


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The number that is sought, written ``?``."""


class Sum(msgspec.Struct, frozen=True, tag="sum"):
    """Values times weights, added from left to right."""

    weights: tuple[float, ...]
    values: tuple[Value, ...]


class Extreme(msgspec.Struct, frozen=True, tag="extreme"):
    """The largest of several values, or the smallest."""

    largest: bool
    values: tuple[Value, ...]


class Mean(msgspec.Struct, frozen=True, tag="mean"):
    """The mean of a value over the last `tokens` tokens, this one among them."""

    value: Value
    tokens: int


class RunningPeak(msgspec.Struct, frozen=True, tag="peak"):
    """The largest value so far in the text."""

    value: Value


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """sign: ``>``, ``>=``, ``<``, ``<=``, or ``!=`` for a feature that fires."""

    left: Value
    sign: str
    right: Value


class Role(msgspec.Struct, frozen=True, tag="role"):
    """The token is from a message of this role."""

    name: str


class Every(msgspec.Struct, frozen=True, tag="every"):
    """All of several conditions."""

    conditions: tuple[Condition, ...]


class Some(msgspec.Struct, frozen=True, tag="some"):
    """At least one of several conditions."""

    conditions: tuple[Condition, ...]


class Not(msgspec.Struct, frozen=True, tag="not"):
    """The condition does not hold."""

    condition: Condition


class Lasting(msgspec.Struct, frozen=True, tag="lasting"):
    """The condition holds at the last `tokens` tokens, this one among them."""

    condition: Condition
    tokens: int


Value = Feature | Number | Open | Sum | Extreme | Mean | RunningPeak
Condition = Compare | Role | Every | Some | Not | Lasting
Node = Value | Condition

VALUES = (Feature, Number, Open, Sum, Extreme, Mean, RunningPeak)
WINDOWS = (Mean, RunningPeak, Lasting)

FIRES = "!="


def children(node: Node) -> tuple[Node, ...]:
    """The nodes right below one."""
    match node:
        case Sum(_, values) | Extreme(_, values):
            return values
        case Mean(value, _) | RunningPeak(value):
            return (value,)
        case Compare(left, _, right):
            return left, right
        case Every(conditions) | Some(conditions):
            return conditions
        case Not(condition) | Lasting(condition, _):
            return (condition,)
        case _:
            return ()


def nodes(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in children(node):
        yield from nodes(child)


def replaced(node: Condition, number: float) -> Condition:
    """A condition with a number in place of the open one."""

    def of(each: Any) -> Any:
        if isinstance(each, Open):
            return Number(number)
        if isinstance(each, tuple):
            return tuple(map(of, each))
        if isinstance(each, msgspec.Struct):
            return type(each)(*(of(getattr(each, name)) for name in each.__struct_fields__))
        return each

    made: Condition = of(node)
    return made


def reach(node: Node) -> int | None:
    """Tokens after an activation at which it can still matter. None for to the end of the text."""
    below = [reach(child) for child in children(node)]
    if isinstance(node, RunningPeak) or None in below:
        return None
    own = node.tokens - 1 if isinstance(node, Mean | Lasting) else 0
    return own + max((each for each in below if each is not None), default=0)


def spelled(node: Node, name: Callable[[int], str]) -> str:
    """A rule as text that parses to it. name: of the features of the list."""

    def of(child: Node) -> str:
        return spelled(child, name)

    def inside(child: Node) -> str:
        return f"({of(child)})" if isinstance(child, Every | Some | Lasting | Sum) else of(child)

    match node:
        case Feature(index):
            return name(index)
        case Number(value):
            return _number(value)
        case Open():
            return "?"
        case Sum(weights, values):
            return _sum(weights, [inside(value) for value in values])
        case Extreme(largest, values):
            return f"{'max' if largest else 'min'}({', '.join(map(of, values))})"
        case Mean(value, tokens):
            return f"mean({of(value)}, {tokens})"
        case RunningPeak(value):
            return f"peak({of(value)})"
        case Compare(left, sign, right):
            return of(left) if sign == FIRES else f"{of(left)} {sign} {of(right)}"
        case Role(role):
            return f'role = "{role}"'
        case Every(conditions):
            return " and ".join(map(inside, conditions))
        case Some(conditions):
            return " or ".join(map(inside, conditions))
        case Not(condition):
            return f"not ({of(condition)})"
        case Lasting(condition, tokens):
            held = inside(condition) if not isinstance(condition, Not) else f"({of(condition)})"
            return f"{held} for {tokens} token{'' if tokens == 1 else 's'}"
    raise AssertionError(node)


def _sum(weights: Sequence[float], values: Sequence[str]) -> str:
    text = ""
    for weight, value in zip(weights, values, strict=True):
        size = abs(weight)
        term = value if size == 1 else f"{_number(size)} * {value}"
        if text:
            text += f" {'-' if weight < 0 else '+'} {term}"
        else:
            text = f"-{term}" if weight < 0 else term
    return text


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


_BARE = re.compile(r"[A-Za-z_][\w.\-]*(/[\w.\-]+)*/\d+")


def feature_text(sae: str, feature: int) -> str:
    """`sae/12`, in quotes where the SAE's name needs them."""
    name = f"{sae}/{feature}"
    return name if _BARE.fullmatch(name) else f'"{name}"'
