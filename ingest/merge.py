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
        self._files = ParquetFiles(layout.root)
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
        of their concatenation is the merge.
        """
        features, contexts, indexes, activations = [], [], [], []
        mask = (1 << self._bits) - 1
        for segment, reader in zip(self.segments, self._readers, strict=True):
            directory = reader.directory
            rows = reader.rows(int(directory[first]), int(directory[end]))
            features.append(rows.feature_id - np.uint32(first))
            contexts.append((rows.position >> self._bits).astype(np.int64) + segment.first_context)
            indexes.append((rows.position & mask).astype(np.int32))
            activations.append(rows.activation)
        counts = self.counts[first:end]
        if not features:
            return Bucket(
                first, end, counts, np.empty(0, np.uint32), np.empty(0, np.int64),
                np.empty(0, np.int32), np.empty(0, np.float16),
            )  # fmt: skip
        feature = np.concatenate(features)
        context = np.concatenate(contexts)
        index = np.concatenate(indexes)
        activation = np.concatenate(activations)
        if len(features) > 1:
            keys = feature.astype(np.uint16) if end - first <= 1 << 16 else feature
            order = stable_order(keys)
            feature, context = feature[order], context[order]
            index, activation = index[order], activation[order]
        return Bucket(first, end, counts, feature, context, index, activation)
