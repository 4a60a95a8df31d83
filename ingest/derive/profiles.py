"""Profiles of features: statistics and examples, derived from a feature's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingest.derive.examples import ContextTokens, Fetch, examples_table
from ingest.derive.merged_segments import MergedSegments, Piece
from ingest.derive.statistics import statistics_table
from ingest.derive.tally import FeatureEntries, Tallies, close, room_for, scan, tally, work_for
from ingest.tokens.contexts import ranges
from ingest.tokens.lookup import TokenLookup

_FEATURES_AT_ONCE = 4_096


class Profiles(NamedTuple):
    """Tables of features in order. See `statistics_table` and `examples_table`."""

    statistics: pa.Table
    examples: pa.Table

    @classmethod
    def joined(cls, parts: Sequence[Profiles]) -> Profiles:
        """Concatenate the profiles of consecutive features."""
        return cls(*(pa.concat_tables(column) for column in zip(*parts, strict=True)))


class Profiler:
    """Computes the profiles of consecutive features from their pieces.

    recorded_tokens: denominator of densities. Memory in addition to a piece: 65,536 counters, two
    numbers for every token of the vocabulary, 32 bytes for every context that the most widespread
    feature can fire in, and 4 for every context. If values are float32, that feature's values too.
    """

    def __init__(
        self, source: MergedSegments, lookup: TokenLookup, recorded_tokens: int, first: int,
        end: int,
    ) -> None:  # fmt: skip
        self._source = source
        self._lookup = lookup
        self._recorded = recorded_tokens
        self._parts: list[Profiles] = []
        most = int(source.counts[first:end].max(initial=0))
        self._work = work_for(lookup, min(most, source.n_contexts), most, wide=source.wide)
        self._begun = 0

    def add(self, piece: Piece) -> None:
        """Process the next piece."""
        rows = self._rows(piece)
        wide = self._source.wide
        if piece.whole and not self._begun:
            for low in range(0, len(piece.counts), _FEATURES_AT_ONCE):
                self._add_whole(piece, rows, low, min(low + _FEATURES_AT_ONCE, len(piece.counts)))
            return
        scan(rows, 0, len(rows.value), self._begun, wide, self._work)
        self._begun += len(rows.value)
        if piece.whole:
            tallies = room_for(1)
            close(piece.first_feature, 0, wide, self._work, tallies)
            self._keep(piece.first_feature, tallies, self._fetch_again(piece.first_feature))
            self._begun = 0

    def finish(self) -> Profiles:
        """Profiles of all features processed."""
        return Profiles.joined(self._parts)

    def _rows(self, piece: Piece) -> FeatureEntries:
        narrow = not self._source.wide
        token, document = self._lookup.of(piece.context_id, piece.token_index)
        return FeatureEntries(
            piece.context_id,
            piece.token_index,
            token,
            document,
            piece.activation.astype(np.float32),
            piece.activation.view(np.uint16) if narrow else np.empty(0, np.uint16),
        )

    def _add_whole(self, piece: Piece, rows: FeatureEntries, low: int, high: int) -> None:
        offsets = np.concatenate(([0], np.cumsum(piece.counts)))
        tallies = room_for(high - low)
        bounds = offsets[low : high + 1]
        first = piece.first_feature + low
        tally(first, bounds, rows, self._source.wide, self._work, tallies)

        def fetch(start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> ContextTokens:
            at = ranges(start, length)
            return ContextTokens(length, piece.token_index[at], piece.activation[at])

        self._keep(first, tallies, fetch)

    def _fetch_again(self, feature: int) -> Fetch:
        """Read the chosen rows of a feature again, since its pieces are gone."""

        def fetch(start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> ContextTokens:
            read = [
                self._source.rows_of(feature, int(a), int(a + n))
                for a, n in zip(start, length, strict=True)
            ]
            indexes, values = zip(*read, strict=True)
            return ContextTokens(length, np.concatenate(indexes), np.concatenate(values))

        return fetch

    def _keep(self, first: int, tallies: Tallies, fetch: Fetch) -> None:
        self._parts.append(
            Profiles(
                statistics_table(first, tallies, self._recorded, self._lookup.texts),
                examples_table(first, tallies, fetch),
            )
        )
