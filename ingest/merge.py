"""Segments of one SAE read as one, feature after feature, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.feature_major import FeatureMajor
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Segment
from ingest.runs import stable_order


class Bucket(NamedTuple):
    """Rows of features first_feature <= id < end_feature, sorted by (feature, context, token).

    counts int64 [features]; feature uint32, context_id int64, token_index int32 and activation
    (float16 or float32, as stored) all [n]. feature counts from first_feature.
    """

    first_feature: int
    end_feature: int
    counts: npt.NDArray[np.int64]
    feature: npt.NDArray[np.uint32]
    context_id: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int32]
    activation: npt.NDArray[np.floating]


class MergedSegments:
    """The union of segments that cover disjoint contexts."""

    def __init__(self, layout: Layout, segments: Sequence[Segment], d_sae: int, bits: int) -> None:
        # Not mapped: what is mapped of all the runs would add up to the size of the store.
        self._files = ParquetFiles(layout.root, memory_map=False)
        self._bits = bits
        self.d_sae = d_sae
        self.segments = tuple(sorted(segments, key=lambda s: s.first_context))
        self._readers = [FeatureMajor(layout.root, s, self._files) for s in self.segments]
        self.counts: npt.NDArray[np.int64] = np.zeros(d_sae, np.int64)
        for reader in self._readers:
            offsets = reader.directory.astype(np.int64)
            self.counts += offsets[1:] - offsets[:-1]

    def close(self) -> None:
        """Close the files underneath."""
        self._files.close()

    def boundaries(self, rows_per_bucket: int, most: int) -> list[int]:
        """Feature ids that cut the features into buckets of about `rows_per_bucket` rows.

        At most `most` buckets; a bucket is never empty of features. First is 0, last is d_sae.
        """
        total = int(self.counts.sum())
        wanted = max(1, min(most, -(-total // rows_per_bucket), self.d_sae))
        cumulative = np.cumsum(self.counts)
        targets = total * np.arange(1, wanted) / wanted
        cuts = np.searchsorted(cumulative, targets, side="left") + 1
        inner = sorted({int(c) for c in cuts if 0 < c < self.d_sae})
        return [0, *inner, self.d_sae]

    def buckets(self, boundaries: Sequence[int]) -> Iterator[Bucket]:
        """The rows, one bucket at a time."""
        for first, end in pairwise(boundaries):
            yield self.bucket(first, end)

    def bucket(self, first: int, end: int) -> Bucket:
        """Rows of features first <= id < end.

        Segments cover disjoint contexts and come in context order, so a stable sort by feature
        of their concatenation is the merge. The concatenation is filled in place: a bucket may be
        one feature of many million rows, and every copy of it counts.
        """
        counts = self.counts[first:end]
        n = int(counts.sum())
        wide = any(s.values == "float32" for s in self.segments)
        feature = np.empty(n, np.uint32)
        context = np.empty(n, np.int64)
        index = np.empty(n, np.int32)
        activation: npt.NDArray[np.floating] = np.empty(n, np.float32 if wide else np.float16)
        mask = np.uint32((1 << self._bits) - 1)
        start = 0
        for segment, reader in zip(self.segments, self._readers, strict=True):
            directory = reader.directory
            rows = reader.rows(int(directory[first]), int(directory[end]))
            part = slice(start, start + len(rows.position))
            np.subtract(rows.feature_id, np.uint32(first), out=feature[part])
            np.add(rows.position >> self._bits, segment.first_context, out=context[part])
            np.bitwise_and(rows.position, mask, out=index[part], casting="unsafe")
            activation[part] = rows.activation
            start = part.stop
        if len(self.segments) > 1 and end - first > 1:
            keys = feature.astype(np.uint16) if end - first <= 1 << 16 else feature
            order = stable_order(keys)
            feature, context = feature[order], context[order]
            index, activation = index[order], activation[order]
        return Bucket(first, end, counts, feature, context, index, activation)
