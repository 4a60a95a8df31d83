"""Activations pooled per unit: per document, per context, or per turn of a chat.

The by-feature copy is sorted by (feature, position), and positions ascend with documents. So the
pairs of a feature and a unit come out of it in their order, by one pass and without a hash table:
docs/design.md has the figures, and why they are not stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from featuredb.store.by_feature import SegmentByFeature
from featuredb.store.positions import context_of, token_of
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.units import Units

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

_ROWS = 1 << 18
"""Activations of which a piece is made, unless one feature has more: arrays stay in the cache."""

_HALF = np.finfo(np.float16)

_KEPT = 1 << 30
"""Bytes of pairs that are kept for the next question, of one SAE, unit and pooling, or a quarter of
the handle's memory where that is less."""


class Pairs(NamedTuple):
    """Features `first` to before `end` with the units they are active in.

    offsets: int64 [features + 1]: feature first + i has entries offsets[i] to offsets[i+1] of unit
    int32 [n] and value float32 [n], the pooled activation. Ascending within a feature by value,
    ties by unit: ranks, which every question wants, need no further sort.
    """

    first: int
    end: int
    offsets: Int64
    unit: Int32
    value: Float32

    @property
    def feature(self) -> Int64:
        """Which of the piece's features each pair is of, from 0, [n]."""
        return np.repeat(np.arange(self.end - self.first), np.diff(self.offsets))


def pairs_of(features: range, feature: Int64, unit: Int32, value: Float32) -> Pairs:
    """Pairs in their order. feature: of each, from 0 in `features`. All [n], ties in this order."""
    width, rank = _by_value(value)
    high = (len(features) - 1).bit_length()
    order = stable_order(feature.astype(np.uint64) << np.uint64(width) | rank, high + width)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(feature, minlength=len(features)))))
    return Pairs(features.start, features.stop, offsets, unit[order], value[order])


def stable_order(key: npt.NDArray[np.uint64], bits: int) -> Int64:
    """The places of keys of so many bits in their order, ties as they are, [n].

    By 16 bits at a time, the lowest first: numpy sorts such numbers by counting, at 7 ns each,
    where it takes 50 for one integer of the key and the place.
    """
    order = np.argsort(key.astype(np.uint16), kind="stable")
    for shift in range(16, bits, 16):
        digit = (key >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


def ordered(value: Float32) -> npt.NDArray[np.uint64]:
    """Integers below 2**32 in the order of the values, equal where they are."""
    bits = (value + np.float32(0)).view(np.int32)
    bits = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (bits.astype(np.int64) + (1 << 31)).astype(np.uint64)


def _by_value(value: Float32) -> tuple[int, npt.NDArray[np.uint64]]:
    """Integers in the order of the values, equal where they are, and how many bits they have: 16
    where all are positive normal float16 numbers, as activations mostly are."""
    bits = value.view(np.int32)
    least, most = (value.min(), value.max()) if len(value) else (_HALF.tiny, _HALF.tiny)
    if least < _HALF.tiny or most > _HALF.max or bool((bits & 0x1FFF).any()):
        return 32, ordered(value)
    # The last 13 bits of the fraction are 0, and the exponent's bias is 112 more than float16's.
    return 16, ((bits >> 13) - (112 << 10)).astype(np.uint64)


class Pooled:
    """The pairs of one SAE. pool: ``max``, ``sum``, ``mean`` or ``count`` (active tokens).

    mean: the sum over the unit's recorded tokens, divided by their number.
    """

    def __init__(self, store: Store, sae: Sae, units: Units, pool: str) -> None:
        self._store, self._sae, self._units, self._pool = store, sae, units, pool

    def map(self, work: Callable[[Pairs], Any]) -> Iterator[Any]:
        """`work` of every piece, in the order of features, several at a time."""
        kept = _KEPT_PAIRS.setdefault(self._store, {})
        on = None if self._units.on is None else self._units.on.name
        key = self._sae.name, self._units.kind, on, self._pool
        pieces = kept.get(key)
        if pieces is not None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                yield from pool.map(work, pieces)
            return
        seen: list[Pairs] = []
        size, most = 0, min(_KEPT, (self._store.memory or 4 * _KEPT) // 4)

        def both(features: range) -> tuple[Pairs, Any]:
            pairs = self.pairs(features)
            return pairs, work(pairs)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for pairs, result in pool.map(both, self._pieces()):
                size += pairs.unit.nbytes + pairs.value.nbytes
                if size <= most:
                    seen.append(pairs)
                yield result
        if size <= most:
            kept.clear()
            kept[key] = seen

    def pairs(self, features: range) -> Pairs:
        """The pairs of some features."""
        parts = [
            part
            for segment in self._store.by_feature(self._sae)
            if (part := self._of(segment, features)) is not None
        ]
        if not parts:
            none = np.empty(0, np.int32)
            return pairs_of(features, np.empty(0, np.int64), none, np.empty(0, np.float32))
        feature, unit, value = (np.concatenate(c) for c in zip(*parts, strict=True))
        if len(parts) > 1:
            feature, unit, value = self._joined(feature, unit, value)
        if self._pool == "mean":
            value = value / self._lengths[unit]
        return pairs_of(features, feature, unit, value.astype(np.float32))

    @cached_property
    def _lengths(self) -> npt.NDArray[np.float64]:
        return self._units.lengths(self._sae)

    def _pieces(self) -> Iterator[range]:
        """The features, cut so that a piece has about `_ROWS` activations."""
        rows = np.zeros(self._sae.d_sae + 1, np.int64)
        for segment in self._store.by_feature(self._sae):
            rows += segment.directory.astype(np.int64)
        first = 0
        while first < self._sae.d_sae:
            end = int(np.searchsorted(rows, rows[first] + _ROWS, side="right")) - 1
            end = min(max(end, first + 1), self._sae.d_sae)
            yield range(first, end)
            first = end

    def _of(
        self, segment: SegmentByFeature, features: range
    ) -> tuple[Int64, Int32, npt.NDArray[Any]] | None:
        """(feature, from 0, unit, value) of the pairs in one segment, by feature and unit."""
        edges = segment.directory[features.start : features.stop + 1].astype(np.int64)
        if edges[0] == edges[-1]:
            return None
        rows = segment.rows(int(edges[0]), int(edges[-1]), with_features=False)
        bits = self._store.snapshot.position_bits
        context = context_of(rows.position, bits) + np.uint32(segment.segment.first_context)
        unit = self._units.of(context, lambda: token_of(rows.position, bits))
        activation, edges = rows.activation, edges - edges[0]
        if self._units.partial:
            inside = unit >= 0
            unit, activation = unit[inside], activation[inside]
            edges = np.concatenate(([0], np.cumsum(inside)))[edges]
            if not len(unit):
                return None
        new = np.empty(len(unit), np.bool_)
        np.not_equal(unit[1:], unit[:-1], out=new[1:])
        firsts = edges[:-1]
        new[firsts[firsts < len(unit)]] = True
        starts = np.flatnonzero(new)
        owner = np.repeat(np.arange(len(features)), np.diff(np.searchsorted(starts, edges)))
        return owner, unit[starts], self._reduced(activation, starts)

    def _reduced(self, activation: npt.NDArray[Any], starts: Int64) -> npt.NDArray[Any]:
        """The activations pooled from each of `starts` to the next."""
        if self._pool == "count":
            return np.diff(starts, append=len(activation))
        if self._pool == "max":
            # Non-negative float16 are in the order of their bits, which compare ten times as fast.
            if activation.dtype == np.float16 and int(activation.view(np.int16).min()) >= 0:
                bits = np.maximum.reduceat(activation.view(np.int16), starts)
                return bits.view(np.float16).astype(np.float32)
            return np.maximum.reduceat(activation.astype(np.float32), starts)
        # Of float16 the sum is exact: 40 bits hold any of them, and float64 has 53.
        return np.add.reduceat(activation.astype(np.float64), starts)

    def _joined(
        self, feature: Int64, unit: Int32, value: npt.NDArray[Any]
    ) -> tuple[Int64, Int32, npt.NDArray[Any]]:
        """Pairs of several segments in order, those of one unit in two segments as one."""
        key = feature << 32 | unit
        order = np.argsort(key, kind="stable")
        key = key[order]
        starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        reduce = np.maximum if self._pool == "max" else np.add
        value = reduce.reduceat(value[order], starts) if len(starts) else value
        key = key[starts]
        return key >> 32, (key & 0xFFFFFFFF).astype(np.int32), value


_KEPT_PAIRS: WeakKeyDictionary[Store, dict[tuple[str, str, str | None, str], Sequence[Pairs]]] = (
    WeakKeyDictionary()
)
