"""Rules from text, by the grammar of ``grammar.lark``. Errors say at which character."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from featuredb.errors import RuleError
from queries.rules.tree import (
    FIRES,
    VALUES,
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

MOST_TOKENS = 100_000
"""Of a window."""

_EXPECTED = {
    "FEATURE": "a feature such as f12", "NUMBER": "a number", "SIGN": "> or <", "RPAR": ")",
    "LPAR": "(", "AND": "and", "OR": "or", "FOR": "for", "NAME": "a name", "TOKENS": "tokens",
    "COMMA": "a comma", "EQUAL": "=", "QUOTED": "a name in quotes",
}  # fmt: skip
_ORDER = list(_EXPECTED)
_FUNCTIONS = "max, min, sum, mean, peak, any and all"


class Spelled(NamedTuple):
    """``q0.99`` or ``0.5x``: a number once it is known of which feature."""

    text: str
    position: int


_NUMBERS = (Spelled, *VALUES)

_DEEPEST = 100

Find = Callable[[str, int], int]
"""The index of a feature in the rule's list, from its name and its position in the text."""

Strengths = Callable[[str, int, int], float]
"""The activation that ``q0.99`` or ``0.5x`` is of the feature of an index, at a position."""


def parse(text: str, find: Find, strength: Strengths) -> Condition:
    """A rule as a tree. Raises `RuleError`, and what `find` and `strength` raise."""
    if not isinstance(text, str):
        raise RuleError(f"a rule is text such as 'f12 > 5', not {type(text).__name__}")
    if not text.strip():
        raise RuleError("the rule is empty: give one such as f12 > 5")
    return _Reader(text, find, strength).condition(_tree(text))


def _tree(text: str) -> Any:
    from lark import UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

    try:
        return _parser().parse(text)
    except UnexpectedEOF as error:
        raise _at(text, len(text), _wanted(error.expected)) from None
    except UnexpectedToken as error:
        expected = error.accepts or error.expected
        ended = error.token.type == "$END"
        place = len(text) if ended else int(error.token.start_pos or 0)
        name = re.search(r"([^\W\d]\w*)\s*$", text[:place])
        if set(expected) == {"LPAR"} and name is not None:
            raise _at(text, name.start(), _no_such(name[1])) from None
        raise _at(text, place, _wanted(expected)) from None
    except UnexpectedCharacters as error:
        place, expected = error.pos_in_stream or 0, set(error.allowed or ())
        if text.count("(", 0, place) <= text.count(")", 0, place):
            expected -= {"RPAR", "COMMA"}
        raise _at(text, place, _wanted(expected)) from None


@cache
def _parser() -> Any:
    from lark import Lark

    grammar = files("queries.rules").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True)


def _no_such(name: str) -> str:
    return f"there is no {name}: a feature is written as f12, and there are {_FUNCTIONS}"


def _wanted(terminals: Any) -> str:
    known = sorted({t for t in terminals if t in _EXPECTED}, key=_ORDER.index)
    words = [_EXPECTED[each] for each in known]
    if "FEATURE" in known:
        words = ["a feature such as f12", "a number", "("]
    if not words:
        return "this does not belong here"
    return f"expected {', '.join(words[:-1])}{' or ' if len(words) > 1 else ''}{words[-1]}"


def _at(text: str, position: int, what: str) -> RuleError:
    rest = text[position:].strip()
    place = f"at character {position + 1}, {rest[:24]!r}" if rest else "at its end"
    return RuleError(f"the rule {text!r} is wrong {place}: {what}", position)


class _Reader:
    """Makes nodes of lark's trees."""

    def __init__(self, text: str, find: Find, strength: Strengths) -> None:
        self._text, self._find, self._strength = text, find, strength
        self._depth = 0

    def condition(self, tree: Any) -> Condition:
        node = self._node(tree)
        if isinstance(node, Feature):
            return Compare(node, FIRES, Number(0.0))
        if isinstance(node, _NUMBERS):
            raise self._wrong(tree, "this is a number: compare it, as in f12 > 5")
        return node

    def _value(self, tree: Any) -> Value | Spelled:
        node = self._node(tree)
        if not isinstance(node, _NUMBERS):
            raise self._wrong(tree, "this is a condition, and a number belongs here")
        return node

    def _plain(self, tree: Any) -> Value:
        node = self._value(tree)
        if isinstance(node, Spelled):
            raise self._misplaced(node)
        return node

    def _node(self, tree: Any) -> Node | Spelled:
        self._depth += 1
        if self._depth > _DEEPEST:
            place = tree.meta.start_pos
            raise RuleError(f"the rule is nested more than {_DEEPEST} deep: simplify it", place)
        try:
            return self._made(tree)
        finally:
            self._depth -= 1

    def _made(self, tree: Any) -> Node | Spelled:
        given = tree.children
        match tree.data:
            case "feature":
                name = given[0].value.strip('"')
                known = given[0].type == "FEATURE"
                return Feature(self._find(name[1:] if known else name, given[0].start_pos))
            case "number":
                return Number(self._number(given[0]))
            case "spelled":
                return Spelled(given[0].value, given[0].start_pos)
            case "open":
                return Open()
            case "either":
                return Some(tuple(map(self.condition, given)))
            case "both":
                return Every(tuple(map(self.condition, given)))
            case "negation":
                return Not(self.condition(given[0]))
            case "lasts":
                return Lasting(self.condition(given[0]), self._tokens(given[1]))
            case "compare":
                return self._compared(given[0], given[1].value, given[2])
            case "between":
                first = self._compared(given[0], given[1].value, given[2])
                return Every((first, self._compared(given[2], given[3].value, given[4])))
            case "role":
                return Role(given[0].value.strip('"'))
            case "call":
                return self._call(tree)
            case "plus" | "minus":
                return self._sum(tree)
            case "times":
                return self._product(tree)
            case "negative":
                return _scaled(-1.0, self._plain(given[0]))
        raise AssertionError(tree.data)

    def _compared(self, left: Any, sign: str, right: Any) -> Compare:
        pair = [self._value(left), self._value(right)]
        for place, other in ((0, 1), (1, 0)):
            each = pair[place]
            if isinstance(each, Spelled):
                pair[place] = self._number_of(each, pair[other])
        one, two = pair
        assert not isinstance(one, Spelled)
        assert not isinstance(two, Spelled)
        if isinstance(one, Open):
            flipped: Mapping[str, str] = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
            one, sign, two = two, flipped[sign], one
        return Compare(one, sign, two)

    def _number_of(self, each: Spelled, other: Value | Spelled) -> Number:
        if isinstance(other, Spelled):
            raise self._misplaced(each)
        features = {n.index for n in nodes(other) if isinstance(n, Feature)}
        if len(features) != 1:
            raise self._misplaced(each)
        return Number(self._strength(each.text, features.pop(), each.position))

    def _sum(self, tree: Any) -> Value:
        """Of as many terms as there are: each is one deeper than the next."""
        terms = []
        while tree.data in ("plus", "minus"):
            sign = 1.0 if tree.data == "plus" else -1.0
            tree, last = tree.children
            terms.append((sign, last))
        value = self._plain(tree)
        for sign, term in reversed(terms):
            value = _added(value, self._plain(term), sign)
        return value

    def _product(self, tree: Any) -> Value:
        left, right = map(self._plain, tree.children)
        if isinstance(left, Number):
            return _scaled(left.value, right)
        if isinstance(right, Number):
            return _scaled(right.value, left)
        raise self._wrong(tree, "two features cannot be multiplied: one side is a number")

    def _call(self, tree: Any) -> Node:
        name, *given = tree.children
        match name.value:
            case "any":
                return Some(tuple(map(self.condition, given)))
            case "all":
                return Every(tuple(map(self.condition, given)))
            case "max" | "min":
                return Extreme(name.value == "max", tuple(map(self._plain, given)))
            case "sum":
                return Sum((1.0,) * len(given), tuple(map(self._plain, given)))
            case "peak" if len(given) == 1:
                return RunningPeak(self._plain(given[0]))
            case "mean" if len(given) == 2 and given[1].data == "number":
                return Mean(self._plain(given[0]), self._tokens(given[1].children[0]))
            case "peak":
                raise self._wrong(tree, "peak takes one value, as in peak(f12)")
            case "mean":
                raise self._wrong(tree, "mean takes a value and tokens, as in mean(f12, 10)")
        raise _at(self._text, name.start_pos, _no_such(name.value))

    def _number(self, token: Any) -> float:
        value = float(token.value)
        if not math.isfinite(value):
            raise _at(self._text, token.start_pos, "the number is too large")
        return value

    def _tokens(self, token: Any) -> int:
        value = self._number(token)
        if value != int(value) or not 1 <= value <= MOST_TOKENS:
            raise _at(self._text, token.start_pos, f"tokens are whole, from 1 to {MOST_TOKENS:,}")
        return int(value)

    def _misplaced(self, each: Spelled) -> RuleError:
        what = f"{each.text} is of one feature: compare it with one, as in f12 > {each.text}"
        return _at(self._text, each.position, what)

    def _wrong(self, tree: Any, what: str) -> RuleError:
        return _at(self._text, tree.meta.start_pos, what)


def _scaled(weight: float, value: Value) -> Value:
    if isinstance(value, Number):
        return Number(weight * value.value)
    if isinstance(value, Sum):
        return Sum(tuple(weight * w for w in value.weights), value.values)
    return value if weight == 1 else Sum((weight,), (value,))


def _added(left: Value, right: Value, sign: float) -> Value:
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(left.value + sign * right.value)
    one = left if isinstance(left, Sum) else Sum((1.0,), (left,))
    two = right if isinstance(right, Sum) else Sum((1.0,), (right,))
    return Sum((*one.weights, *(sign * w for w in two.weights)), one.values + two.values)
