"""Random rules with what they mean, token by token: an oracle that shares no code with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hypothesis import strategies as st

Text = Sequence[Mapping[str, float]]
"""The activations of each token of a text, by feature name, silent ones left out."""

Number = tuple[str, Callable[[Text, int], float]]
"""A number as text, and its value at a token. Before the text, below 0, all are silent."""

Truth = tuple[str, Callable[[Text, int], bool]]

_CONSTANTS = (0.0, 0.5, 0.75, 1.0, 2.0, 3.25, 10.0)


def _feature(name: str) -> Number:
    return f'"{name}"', lambda text, t: text[t].get(name, 0.0) if t >= 0 else 0.0


def _sum(one: Number, two: Number, weight: float) -> Number:
    spelled = f"({one[0]} - {weight} * {two[0]})"
    return spelled, lambda text, t: one[1](text, t) - weight * two[1](text, t)


def _largest(one: Number, two: Number) -> Number:
    return f"max({one[0]}, {two[0]})", lambda text, t: max(one[1](text, t), two[1](text, t))


def _mean(one: Number, n: int) -> Number:
    def mean(text: Text, t: int) -> float:
        return sum(one[1](text, t - back) for back in range(n)) / n

    return f"mean({one[0]}, {n})", mean


def _peak(one: Number) -> Number:
    return f"peak({one[0]})", lambda text, t: max(one[1](text, s) for s in range(min(-1, t), t + 1))


def numbers(names: Sequence[str], depth: int = 2) -> st.SearchStrategy[Number]:
    """Of at most two windows, one in the other."""
    leaf = st.sampled_from(list(names)).map(_feature)
    if depth == 0:
        return leaf
    below = numbers(names, depth - 1)
    return st.one_of(
        leaf,
        st.builds(_sum, below, below, st.sampled_from([0.5, 1.0, 2.0])),
        st.builds(_largest, below, below),
        st.builds(_mean, below, st.sampled_from([1, 2, 4])),
        st.builds(_peak, below),
    )


def _above(one: Number, c: float) -> Truth:
    return f"{one[0]} > {c}", lambda text, t: one[1](text, t) > c


def _at_most(one: Number, two: Number) -> Truth:
    return f"{one[0]} <= {two[0]}", lambda text, t: one[1](text, t) <= two[1](text, t)


def _fires(name: str) -> Truth:
    return f'"{name}"', lambda text, t: t >= 0 and name in text[t]


def _both(one: Truth, two: Truth) -> Truth:
    return f"({one[0]} and {two[0]})", lambda text, t: one[1](text, t) and two[1](text, t)


def _either(one: Truth, two: Truth) -> Truth:
    return f"any({one[0]}, {two[0]})", lambda text, t: one[1](text, t) or two[1](text, t)


def _not(one: Truth) -> Truth:
    return f"not ({one[0]})", lambda text, t: not one[1](text, t)


def _lasts(one: Truth, n: int) -> Truth:
    def lasts(text: Text, t: int) -> bool:
        return all(one[1](text, t - back) for back in range(n))

    return f"({one[0]}) for {n} tokens", lasts


def rules(names: Sequence[str], depth: int = 2) -> st.SearchStrategy[Truth]:
    """Rules over features of these names."""
    values = numbers(names)
    leaf = st.one_of(
        st.builds(_above, values, st.sampled_from(_CONSTANTS)),
        st.builds(_at_most, values, values),
        st.sampled_from(list(names)).map(_fires),
    )
    if depth == 0:
        return leaf
    below = rules(names, depth - 1)
    return st.one_of(
        leaf,
        st.builds(_both, below, below),
        st.builds(_either, below, below),
        st.builds(_not, below),
        st.builds(_lasts, below, st.sampled_from([1, 2, 3])),
    )
