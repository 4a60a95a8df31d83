"""Read several segments of one SAE as one, in order of features and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from featuredb.store.by_feature import FeatureRows, SegmentByFeature
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.positions import token_of
from featuredb.store.snapshot import Segment

_OPEN_FILES = 160
"""Files that a reading thread may keep open: more than are merged at once, and few enough for four
threads to stay below the usual limit of 1,024."""


class Piece(NamedTuple):
    """Consecutive rows of the merged segments, sorted by (feature, context, token).

    Whole features first_feature <= id < end_feature, or some of the rows of one. counts int64
    [features]: their rows here. context_id int64, token_index int32 and activation (float16 or
    float32, as stored) all [n]. whole: no feature continues in the next piece.
    """

    first_feature: int
    end_feature: int
    counts: npt.NDArray[np.int64]
    context_id: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int32]
    activation: npt.NDArray[np.floating]
    whole: bool

    @property
    def feature_id(self) -> npt.NDArray[np.uint32]:
        """uint32 [n]."""
        features = np.arange(self.first_feature, self.end_feature, dtype=np.uint32)
        return np.repeat(features, self.counts)


class MergedSegments:
    """The union of segments that cover disjoint contexts.

    Files are opened when they are first read. `close` closes them.
    """

    def __init__(self, layout: Layout, segments: Sequence[Segment], d_sae: int, bits: int) -> None:
        # Not memory-mapped, since the mapped pages would add up to the size of the store.
        self._files = ParquetFiles(layout.root, _OPEN_FILES, memory_map=False)
        self.bits = bits
        self.d_sae = d_sae
        self.segments = tuple(sorted(segments, key=lambda s: s.first_context))
        self._sources = [
            _Cursor(SegmentByFeature(layout.root, s, self._files)) for s in self.segments
        ]
        self.counts: npt.NDArray[np.int64] = np.zeros(d_sae, np.int64)
        for source in self._sources:
            self.counts += np.diff(source.offsets)

    @property
    def wide(self) -> bool:
        """Whether any activation is float32."""
        return any(s.values == "float32" for s in self.segments)

    @property
    def n_contexts(self) -> int:
        """Upper bound on contexts with activations."""
        return sum(s.end_context - s.first_context for s in self.segments)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def boundaries(self, rows_per_bucket: int, most: int) -> list[int]:
        """Feature ids that cut the features into buckets of about `rows_per_bucket` rows.

        At most `most` buckets. A bucket is never empty of features. First is 0, last is d_sae.
        """
        total = int(self.counts.sum())
        wanted = max(1, min(most, -(-total // rows_per_bucket), self.d_sae))
        cumulative = np.cumsum(self.counts)
        targets = total * np.arange(1, wanted) / wanted
        cuts = np.searchsorted(cumulative, targets, side="left") + 1
        inner = sorted({int(c) for c in cuts if 0 < c < self.d_sae})
        return [0, *inner, self.d_sae]

    def pieces(self, first: int, end: int, most_rows: int) -> Iterator[Piece]:
        """Rows of features first <= id < end, at most about `most_rows` at a time.

        If calls ascend in features, every row group is decoded once. A feature with more rows
        comes in several pieces.
        """
        cumulative = np.concatenate(([0], np.cumsum(self.counts[first:end])))
        at = 0
        while at < end - first:
            cut = int(np.searchsorted(cumulative, cumulative[at] + most_rows, side="right")) - 1
            if cut > at:
                yield self._whole(first + at, first + cut)
                at = cut
            else:
                yield from self._slices(first + at, most_rows)
                at += 1

    def rows_of(
        self, feature: int, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.floating]]:
        """(token_index, activation) of rows start <= i < stop of one feature, all of one context.

        Does not affect the position of `pieces`.
        """
        for source in self._sources:
            n_rows = int(source.offsets[feature + 1] - source.offsets[feature])
            if start < n_rows:
                low = int(source.offsets[feature])
                rows = source.peek(low + start, low + stop)
                return token_of(rows.position, self.bits).astype(np.int32), rows.activation
            start, stop = start - n_rows, stop - n_rows
        raise IndexError(feature)

    def _whole(self, first: int, end: int) -> Piece:
        """All rows of features first <= id < end, each copied to its final place.

        Segments cover disjoint contexts and come in context order, so filling every feature's
        place segment by segment is the merge: nothing is compared or sorted.
        """
        counts = self.counts[first:end]
        place = np.cumsum(counts) - counts
        context, index, bits, activation = self._empty(int(counts.sum()))
        for segment, source in zip(self.segments, self._sources, strict=True):
            low, high = int(source.offsets[first]), int(source.offsets[end])
            if low == high:
                continue
            rows = source.take(low, high)
            lengths = np.diff(source.offsets[first : end + 1])
            values = self._as_bits(rows.activation)
            _put(lengths, rows.position, values, segment.first_context, self.bits, place,
                 context, index, bits)  # fmt: skip
        return Piece(first, end, counts, context, index, activation, whole=True)

    def _slices(self, feature: int, most_rows: int) -> Iterator[Piece]:
        """One feature's rows, segment by segment."""
        left = int(self.counts[feature])
        for segment, source in zip(self.segments, self._sources, strict=True):
            low, high = int(source.offsets[feature]), int(source.offsets[feature + 1])
            for start, stop in pairwise([*range(low, high, most_rows), high]):
                n = stop - start
                left -= n
                rows = source.take(start, stop)
                context, index, bits, activation = self._empty(n)
                counts = np.array([n], np.int64)
                _put(counts, rows.position, self._as_bits(rows.activation), segment.first_context,
                     self.bits, np.zeros(1, np.int64), context, index, bits)  # fmt: skip
                whole = left == 0
                yield Piece(feature, feature + 1, counts, context, index, activation, whole)

    def _empty(
        self, n: int
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.unsignedinteger],
        npt.NDArray[np.floating],
    ]:
        """Columns of a piece: contexts, token indexes, activations as bits, and as values."""
        bits: npt.NDArray[np.unsignedinteger] = np.empty(n, np.uint32 if self.wide else np.uint16)
        values: npt.NDArray[np.floating] = bits.view(np.float32 if self.wide else np.float16)
        return np.empty(n, np.int64), np.empty(n, np.int32), bits, values

    def _as_bits(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.unsignedinteger]:
        if self.wide:
            return values.astype(np.float32, copy=False).view(np.uint32)
        return values.view(np.uint16)


class _Cursor:
    """Reads a segment's by-feature rows in order, decoding each row group once."""

    def __init__(self, reader: SegmentByFeature) -> None:
        self._reader = reader
        self.offsets = reader.directory.astype(np.int64)
        self._first = 0
        self._rows: FeatureRows | None = None

    def take(self, start: int, stop: int) -> FeatureRows:
        """Rows start <= i < stop. Positions and activations only."""
        end = self._end()
        if self._rows is None or not self._first <= start <= end:
            self._first, self._rows = start, None
            end = start
        if stop > end:
            more = self._reader.rows(end, self._reader.group_end(stop), with_features=False)
            self._rows = _joined(self._from(start), more)
            self._first = start
        assert self._rows is not None
        low, high = start - self._first, stop - self._first
        rows = self._rows
        return FeatureRows(rows.feature_id, rows.position[low:high], rows.activation[low:high])

    def peek(self, start: int, stop: int) -> FeatureRows:
        """Rows start <= i < stop, independent of `take`."""
        return self._reader.rows(start, stop, with_features=False)

    def _end(self) -> int:
        return self._first + (0 if self._rows is None else len(self._rows.position))

    def _from(self, start: int) -> FeatureRows | None:
        """Buffered rows from `start` on."""
        if self._rows is None or start >= self._end():
            return None
        at = start - self._first
        rows = self._rows
        return FeatureRows(rows.feature_id, rows.position[at:], rows.activation[at:])


def _joined(one: FeatureRows | None, other: FeatureRows) -> FeatureRows:
    if one is None:
        return other
    return FeatureRows(*(np.concatenate(pair) for pair in zip(one, other, strict=True)))


@nb.njit(cache=True, nogil=True)
def _put(
    counts: npt.NDArray[np.int64],
    position: npt.NDArray[np.uint32],
    value: npt.NDArray[np.unsignedinteger],
    first_context: int,
    bits: int,
    place: npt.NDArray[np.int64],
    context_out: npt.NDArray[np.int64],
    index_out: npt.NDArray[np.int32],
    value_out: npt.NDArray[np.unsignedinteger],
) -> None:
    """Copy one segment's rows, feature after feature, to where `place` [features] says, and move
    `place` on."""
    mask = (1 << bits) - 1
    row = 0
    for feature in range(len(counts)):
        at = place[feature]
        for _ in range(counts[feature]):
            context_out[at] = first_context + (position[row] >> bits)
            index_out[at] = position[row] & mask
            value_out[at] = value[row]
            at += 1
            row += 1
        place[feature] = at
