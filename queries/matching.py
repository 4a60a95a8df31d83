"""Sets of places: which tokens, contexts or documents satisfy conditions on several features.

A place is a token's position as in `queries.conditions.Places`. All arrays of positions ascend, so
sets are merged and ranges are found by binary search: no step looks at another token of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.store.store import Store
from queries.conditions import Places

UNITS = ("token", "context", "document")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_NEVER = np.iinfo(np.int64).max


class Matched(NamedTuple):
    """What satisfies the conditions, ascending by position, several places of a unit among them.

    key: int64 [n], the unit: a position, a context or a document. position: int64 [n], its place.
    activations: float32 [n, f], the largest in reach of each feature of `every`, then of `some`.
    """

    key: Ints
    position: Ints
    activations: Floats


@dataclass(frozen=True)
class Conditions:
    """All of `every`, at least `least` of `some` and none of `none`, in reach of one place.

    unit: what is in reach, unless `within` says how many tokens either side, in the same context.
    ordered: those of `every` one after another.
    """

    every: Sequence[Places]
    some: Sequence[Places]
    none: Sequence[Places]
    least: int
    unit: str
    within: int | None
    ordered: bool

    def matched(self, store: Store) -> Matched:
        """Everything that satisfies them."""
        if self.within is None and not self.ordered:
            return self._units(store)
        return self._places(store)

    def _units(self, store: Store) -> Matched:
        """Whole units: sets of their keys."""
        every, some, none = (
            [_strongest(p, _keys(store, self.unit, p.position)) for p in places]
            for places in (self.every, self.some, self.none)
        )
        leading = every[:1] or some
        keys = _union([unit.key for unit in leading])
        for other in every[1:]:
            keys = keys[_row_of(other.key, keys) >= 0]
        keys = _with_some(keys, self.least, [_row_of(s.key, keys) >= 0 for s in some])
        for other in none:
            keys = keys[_row_of(other.key, keys) < 0]
        activations = np.zeros((len(keys), len(every) + len(some)), np.float32)
        position = np.full(len(keys), -1, np.int64)
        for column, unit in enumerate((*every, *some)):
            row = _row_of(unit.key, keys)
            activations[:, column] = np.where(row < 0, 0, np.append(unit.activation, 0)[row])
            # The place is where the first of them is strongest.
            position = np.where(position < 0, np.append(unit.position, -1)[row], position)
        return Matched(keys, position, activations)

    def _places(self, store: Store) -> Matched:
        """Places of the first of `every`, else of any of `some`, by what is in their reach."""
        position = _union([p.position for p in self.every[:1] or self.some])
        first, last = _ends(store, self.unit, self.within, position)
        held = np.ones(len(position), bool)
        columns: list[Floats] = [p.activation for p in self.every[:1]]
        reached = position
        for other in self.every[1:]:
            if self.ordered:
                row = np.searchsorted(other.position, reached, side="right")
                reached = np.append(other.position, _NEVER)[row]
                held &= reached <= last
                columns.append(np.append(other.activation, np.float32(0))[row])
            else:
                held &= _in_range(other, first, last)
                columns.append(_largest(other, first, last))
        met = [_in_range(other, first, last) for other in self.some]
        held = np.isin(position, _with_some(position, self.least, met)) & held
        columns += [_largest(other, first, last) for other in self.some]
        for other in self.none:
            held &= ~_in_range(other, first, last)
        keys = _keys(store, self.unit, position[held])
        return Matched(keys, position[held], np.stack(columns, axis=1)[held])


class _Strongest(NamedTuple):
    """Units of one condition: key ascending, and its strongest place in each, the first of ties."""

    key: Ints
    position: Ints
    activation: Floats


def _strongest(places: Places, keys: Ints) -> _Strongest:
    """keys: of each place, ascending as places do."""
    first = np.flatnonzero(_new(keys))
    if len(first) == len(keys):  # tokens
        return _Strongest(keys, places.position, places.activation)
    unit = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(keys))))
    largest = np.maximum.reduceat(places.activation, first)
    at = np.flatnonzero(places.activation == largest[unit])
    at = at[_new(unit[at])]
    return _Strongest(keys[at], places.position[at], places.activation[at])


def _new(keys: Ints) -> Bools:
    """Whether each of ascending keys is another than the one before."""
    return np.append(np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1])


def _union(several: Sequence[Ints]) -> Ints:
    """The distinct values of arrays that ascend and have none twice, ascending."""
    if len(several) == 1:
        return several[0]
    values = np.sort(np.concatenate(several))
    return values[_new(values)]


def _with_some(rows: Ints, least: int, met: Sequence[Bools]) -> Ints:
    """Those of `rows` at which at least so many of `met` are true. All where there is none."""
    return rows[np.sum(met, axis=0) >= least] if met else rows


def _row_of(keys: Ints, wanted: Ints) -> Ints:
    """The row of each of `wanted` in `keys`, which ascend, -1 where it is not there."""
    row = np.searchsorted(keys, wanted)
    return np.where(np.append(keys, -1)[row] == wanted, row, -1)


def _rows_in(places: Places, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Rows of `places` from position `first` to `last`, both included."""
    start = np.searchsorted(places.position, first)
    return start, np.searchsorted(places.position, last, side="right")


def _in_range(places: Places, first: Ints, last: Ints) -> Bools:
    start, stop = _rows_in(places, first, last)
    return stop > start


def _largest(places: Places, first: Ints, last: Ints) -> Floats:
    """The largest activation in each range, 0 where there is none."""
    start, stop = _rows_in(places, first, last)
    largest = np.zeros(len(start), np.float32)
    some = np.flatnonzero(stop > start)
    if len(some):
        # `reduceat` takes pairs of rows: every other result is that of a range.
        pairs = np.stack([start[some], stop[some]], axis=1).ravel()
        padded = np.append(places.activation, np.float32(0))
        largest[some] = np.maximum.reduceat(padded, pairs)[::2]
    return largest


def _keys(store: Store, unit: str, position: Ints) -> Ints:
    """The unit of each position."""
    if unit == "token":
        return position
    context = position >> store.snapshot.position_bits
    return context if unit == "context" else store.texts.documents_of(context)


def _ends(store: Store, unit: str, within: int | None, position: Ints) -> tuple[Ints, Ints]:
    """The first and the last position in reach of each."""
    bits = store.snapshot.position_bits
    first = last = position >> bits
    if unit == "document" and within is None:
        first, last = store.texts.contexts_of(store.texts.documents_of(first))
    first, last = first << bits, ((last + 1) << bits) - 1
    if within is None:
        return first, last
    # No text is as long as 2^40 tokens, and positions must not overflow.
    reach = min(within, 2**40)
    return np.maximum(first, position - reach), np.minimum(last, position + reach)


def best_of_each_unit(keys: Ints, order: Ints) -> Ints:
    """Of rows in `order`, the first of each key."""
    _, first = np.unique(keys[order], return_index=True)
    return order[np.sort(first)]
