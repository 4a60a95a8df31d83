"""The two copies of one segment: sort order, directory, and each against the other.

Everything is read a few row groups at a time, since one dense feature's rows may exceed the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featuredb.store import schemas
from featuredb.store.by_feature import FeatureRows, SegmentByFeature
from featuredb.store.by_token import SegmentByToken
from featuredb.store.corpora import Texts
from featuredb.store.positions import context_of, pack, token_of
from featuredb.store.recorded import recordable
from featuredb.store.snapshot import FeatureFile, Segment
from featuredb.verification.remedies import RESTORE
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope

Ints = npt.NDArray[np.int64]


class Profile:
    """What the activations of one SAE add up to, by feature, all [d_sae].

    count and contexts: int64. low and high: float32, infinite where a feature never fires. total:
    float64, the sum.
    """

    def __init__(self, d_sae: int) -> None:
        self.count = np.zeros(d_sae, np.int64)
        self.contexts = np.zeros(d_sae, np.int64)
        self.low = np.full(d_sae, np.inf, np.float32)
        self.high = np.full(d_sae, -np.inf, np.float32)
        self.total = np.zeros(d_sae, np.float64)

    def add(self, rows: FeatureRows, new_context: npt.NDArray[np.bool_]) -> None:
        """Add rows sorted by feature. new_context [n]: the first row of its context."""
        first = np.ones(len(rows.feature_id), bool)
        first[1:] = rows.feature_id[1:] != rows.feature_id[:-1]
        starts = np.flatnonzero(first)
        ids = rows.feature_id[starts]
        values = rows.activation.astype(np.float32, copy=False)
        self.count[ids] += np.diff(np.append(starts, len(first)))
        self.contexts[ids] += np.add.reduceat(new_context, starts, dtype=np.int64)
        self.low[ids] = np.minimum(self.low[ids], np.minimum.reduceat(values, starts))
        self.high[ids] = np.maximum(self.high[ids], np.maximum.reduceat(values, starts))
        self.total[ids] += np.add.reduceat(values, starts, dtype=np.float64)

    def join(self, other: Self) -> None:
        """Add the profile of other contexts."""
        self.count += other.count
        self.contexts += other.contexts
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)
        self.total += other.total


class Lengths:
    """How many tokens each context has, from the corpora's indexes."""

    def __init__(self, scope: Scope) -> None:
        self._snapshot = scope.snapshot
        self._texts = Texts(scope.layout.root, scope.snapshot, scope.files)

    def of(self, contexts: Ints) -> Ints:
        """int64 [n] of contexts [n]. 0 for an unknown context."""
        lengths = np.zeros(len(contexts), np.int64)
        for corpus in self._snapshot.corpora:
            rows = contexts - corpus.first_context
            inside = (rows >= 0) & (rows < corpus.n_contexts)
            if inside.any():
                starts = self._texts.index(corpus)[:, 1]
                lengths[inside] = starts[rows[inside] + 1] - starts[rows[inside]]
        return lengths

    def recorded(self, first: int, end: int, excluded: Sequence[int] = ()) -> int:
        """Positions of contexts first <= id < end, without BOS where that is not recorded, and
        without the tokens `excluded`."""
        positions = 0
        for corpus in self._snapshot.corpora:
            low = max(first, corpus.first_context) - corpus.first_context
            high = min(end, corpus.first_context + corpus.n_contexts) - corpus.first_context
            if low < high:
                rows = slice(low, high)
                counts = recordable(self._texts, self._snapshot, corpus, rows, excluded)
                positions += int(counts.sum())
        return positions


def check_segment(
    scope: Scope, segment: Segment, lengths: Lengths, profile: Profile
) -> Iterator[Problem]:
    """Check one segment. `profile`, empty, becomes the totals of its activations.

    The copies hold the same set when they agree on the number of rows and on an order-free
    checksum of (feature, position, value) over all of them.
    """
    check = _Check(scope, segment, lengths, profile)
    yield from check.by_feature()
    yield from check.by_token()
    if check.sums[0] != check.sums[1]:
        yield Problem(
            f"segments/{segment.id}",
            "its by-feature and by-token copies disagree",
            RESTORE,
        )


class _Check:
    def __init__(self, scope: Scope, segment: Segment, lengths: Lengths, profile: Profile) -> None:
        self.scope = scope
        self.segment = segment
        self.bits = scope.snapshot.position_bits
        self.lengths = lengths
        self.profile = profile
        self.sums = [(0, 0), (0, 0)]
        """(rows, checksum) of the by-feature and of the by-token copy."""

    def by_feature(self) -> Iterator[Problem]:
        segment, reader = self.segment, SegmentByFeature(
            self.scope.layout.root, self.segment, self.scope.files
        )  # fmt: skip
        directory = np.asarray(reader.directory)
        path = segment.directory.path
        d_sae = len(self.profile.count)
        if len(directory) != d_sae + 1 or int(directory[-1]) != segment.rows:
            yield Problem(path, "does not match the segment's rows", RESTORE)
            return
        row = 0
        last = (-1, -1)
        for entry in segment.feature_files:
            wrong: dict[str, None] = {}
            if entry.first_row != row:
                wrong["does not begin at the row that the snapshot says"] = None
            row = entry.first_row + entry.file.rows
            for rows in self._pieces(reader, entry):
                wrong |= dict.fromkeys(self._wrong_rows(entry, rows, last))
                last = int(rows.feature_id[-1]), int(rows.position[-1])
            for what in wrong:
                yield Problem(entry.file.path, what, RESTORE)
            self.scope.bar.advance(entry.file.bytes)
        counts = directory[1:].astype(np.int64) - directory[:-1].astype(np.int64)
        if not (counts == self.profile.count).all():
            yield Problem(path, "does not match the by-feature copy", RESTORE)

    def by_token(self) -> Iterator[Problem]:
        reader = SegmentByToken(self.segment, self.scope.files, self.bits)
        for entry in self.segment.token_files:
            wrong: dict[str, None] = {}
            last = -1
            for rows in reader.pieces(entry, 1):
                position = rows.position.astype(np.int64)
                if len(position) == 0:
                    continue
                if position[0] <= last or not (position[1:] > position[:-1]).all():
                    wrong["is not sorted by position"] = None
                last = int(position[-1])
                contexts = context_of(position, self.bits) + entry.base_context
                if contexts.min() < entry.first_context or contexts.max() >= entry.end_context:
                    wrong["has contexts beyond those that the snapshot says"] = None
                if not _rising(rows.feature_id, rows.offsets):
                    wrong["has a token whose features are not in ascending order"] = None
                local = position + pack(
                    entry.base_context - self.segment.first_context, 0, self.bits
                )
                repeated = np.repeat(local, np.diff(rows.offsets))
                self._count(1, rows.feature_id, repeated, rows.activation)
            for what in wrong:
                yield Problem(entry.file.path, what, RESTORE)
            self.scope.bar.advance(entry.file.bytes)

    def _pieces(self, reader: SegmentByFeature, entry: FeatureFile) -> Iterator[FeatureRows]:
        size = schemas.FEATURE_ROW_GROUP
        for start in range(0, entry.file.rows, size):
            stop = min(entry.file.rows, start + size)
            yield reader.rows(entry.first_row + start, entry.first_row + stop)

    def _wrong_rows(
        self, entry: FeatureFile, rows: FeatureRows, last: tuple[int, int]
    ) -> Iterator[str]:
        """last: the (feature, position) before these rows."""
        feature, position = rows.feature_id.astype(np.int64), rows.position.astype(np.int64)
        keys = (feature << 32) | position
        if (int(feature[0]), int(position[0])) <= last or not (keys[1:] > keys[:-1]).all():
            yield "is not sorted by (feature, position)"
        if feature.min() < entry.first_feature or feature.max() >= entry.end_feature:
            yield "has features beyond those that the snapshot says"
            return
        finite = np.isfinite(rows.activation).all()
        if not finite or (rows.activation == 0).any():
            yield "has activations that are zero or not finite"
        local = context_of(position, self.bits)
        contexts = local + self.segment.first_context
        index = token_of(position, self.bits)
        if contexts.max() >= self.segment.end_context or (index >= self.lengths.of(contexts)).any():
            yield "has positions that no context of the corpus has"
        new = np.ones(len(keys), bool)
        pairs = (feature << 32) | local
        new[1:] = pairs[1:] != pairs[:-1]
        new[0] = (int(feature[0]), int(local[0])) != (last[0], context_of(last[1], self.bits))
        self.profile.add(rows, new)
        self._count(0, rows.feature_id, position, rows.activation)

    def _count(
        self, copy: int, feature: npt.NDArray[Any], position: Ints, values: schemas.FloatArray
    ) -> None:
        rows, checksum = self.sums[copy]
        added = _checksum(feature, position, values)
        self.sums[copy] = rows + len(feature), (checksum + added) % 2**64


def _rising(feature: npt.NDArray[Any], offsets: Ints) -> bool:
    """Whether the features of each token, feature[offsets[i]:offsets[i+1]], ascend strictly."""
    if len(feature) < 2:
        return True
    wide = feature.astype(np.int64)
    fine = wide[1:] > wide[:-1]
    starts = offsets[1:-1]
    fine[starts[(starts > 0) & (starts < len(feature))] - 1] = True
    return bool(fine.all())


def _checksum(feature: npt.NDArray[Any], position: Ints, values: schemas.FloatArray) -> int:
    """Sum, modulo 2**64, of a mixed 64-bit hash of each activation."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = (feature.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)
        mixed = key * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed = (mixed + bits) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        return int(mixed.sum(dtype=np.uint64))
