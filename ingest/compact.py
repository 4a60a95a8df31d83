"""Compaction: many runs of one SAE become one segment with its features in bucket files.

A bucket is written by one function, `write_bucket`, whoever runs it and in whatever order; the
segment appears when all of them are there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb import schemas
from featuredb.feature_major import FeatureRows, directory_of, write_feature_file
from featuredb.files import folder_in_place, fsync_path, remove_tree, sweep, temporary_name
from featuredb.layout import Layout
from featuredb.snapshot import Draft, FeatureFile, File, Segment, TokenFile
from ingest.derive.examples import bucket_examples
from ingest.derive.statistics import TokenLookUp, bucket_statistics
from ingest.look_up import token_look_up
from ingest.merge import Bucket, MergedSegments
from ingest.runs import file_entry

ROWS_PER_BUCKET = 1 << 20
"""Aim for this many rows a bucket file: about 32 row groups, a footer parsed in well under 1 ms."""


class Compaction(NamedTuple):
    """The parts of one SAE and the segment they become."""

    segment_id: str
    sae: str
    d_sae: int
    bits: int
    segments: tuple[Segment, ...]

    @property
    def first_context(self) -> int:
        return min(s.first_context for s in self.segments)

    @property
    def end_context(self) -> int:
        return max(s.end_context for s in self.segments)

    @property
    def recorded_tokens(self) -> int:
        return sum(s.recorded_tokens for s in self.segments)

    @property
    def values(self) -> str:
        """``float32`` if any part has a value beyond float16."""
        wide = any(s.values == "float32" for s in self.segments)
        return "float32" if wide else "float16"


class Place(NamedTuple):
    """A bucket of the merged segment: features first <= id < end, rows from first_row."""

    number: int
    first_feature: int
    end_feature: int
    first_row: int


class Merged(NamedTuple):
    """A bucket on the disk, and what is derived from its rows: `bucket_statistics`, EXAMPLES."""

    file: FeatureFile
    statistics: pa.Table
    examples: pa.Table


Merge = Callable[[Compaction, Path, Sequence[Place]], Iterable[Merged]]
"""Writes buckets below a folder and gives what they became, in order."""

DraftMerge = Callable[[Layout, Draft, Compaction, Path, Sequence[Place]], Iterable[Merged]]
"""A `Merge` that is still to be told of which database."""


def compact_segments(
    layout: Layout, job: Compaction, merge: Merge
) -> tuple[Segment, tuple[Merged, ...]]:
    """Merge segments that cover disjoint contexts into one, in place in one step.

    The buckets come with what is derived from them, so that this needs no second pass. The
    token-major files are already in order and are linked, not rewritten.
    """
    final = layout.segment(job.segment_id)
    remove_tree(final)
    source = MergedSegments(layout, job.segments, job.d_sae, job.bits)
    source.close()
    directory = directory_of(source.counts)
    with folder_in_place(final) as folder:
        (folder / "fm").mkdir()
        (folder / "tm").mkdir()
        boundaries = source.boundaries(ROWS_PER_BUCKET, schemas.MAX_BUCKETS)
        places = [
            Place(number, first, end, int(directory[first]))
            for number, (first, end) in enumerate(pairwise(boundaries))
        ]
        buckets = tuple(merge(job, folder, places))
        sweep(folder / "fm")
        np.save(folder / "directory.npy", directory)
        sinks = _join_sinks(layout, source.segments, folder / "sinks.parquet")
        segment = Segment(
            id=job.segment_id,
            sae=job.sae,
            level=1,
            first_context=job.first_context,
            end_context=job.end_context,
            rows=int(directory[-1]),
            values="float32" if job.values == "float32" else "float16",
            recorded_tokens=job.recorded_tokens,
            feature_files=tuple(bucket.file for bucket in buckets),
            token_files=tuple(_link_token_files(layout, source.segments, folder, final)),
            directory=file_entry(layout, folder / "directory.npy", folder, final, job.d_sae + 1),
            sinks=file_entry(layout, folder / "sinks.parquet", folder, final, sinks),
        )
    return segment, buckets


def merge_here(
    layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
) -> Iterator[Merged]:
    """A `DraftMerge` in this process, one bucket after the other.

    Memory is bounded by the largest bucket (about `ROWS_PER_BUCKET` rows, or one feature's).
    """
    look_up = token_look_up(layout, draft)
    source = MergedSegments(layout, job.segments, job.d_sae, job.bits)
    try:
        yield from map(partial(write_bucket, layout, job, source, look_up, folder), places)
    finally:
        source.close()


def write_bucket(
    layout: Layout,
    job: Compaction,
    source: MergedSegments,
    look_up: TokenLookUp,
    folder: Path,
    place: Place,
) -> Merged:
    """Write one bucket below `folder`, which will become the segment's, and derive from it."""
    bucket = source.bucket(place.first_feature, place.end_feature)
    path = folder / "fm" / f"b{place.number:03d}.parquet"
    # On a cluster a worker given up for dead may still write the bucket that another repeats.
    temporary = temporary_name(path)
    write_feature_file(temporary, _to_rows(bucket, job.first_context, job.bits), job.values)
    fsync_path(temporary)
    os.replace(temporary, path)
    entry = file_entry(layout, path, folder, layout.segment(job.segment_id), len(bucket.feature))
    return Merged(
        FeatureFile(entry, place.first_feature, place.end_feature, place.first_row),
        bucket_statistics(bucket, job.recorded_tokens, look_up),
        bucket_examples(bucket),
    )


def _to_rows(bucket: Bucket, base: int, bits: int) -> FeatureRows:
    local = (bucket.context_id - base).astype(np.uint32)
    position = (local << np.uint32(bits)) | bucket.token_index.astype(np.uint32)
    features = bucket.feature + np.uint32(bucket.first_feature)
    return FeatureRows(features, position, bucket.activation)


def _join_sinks(layout: Layout, segments: Iterable[Segment], path: Path) -> int:
    table = pa.concat_tables([pq.read_table(layout.root / s.sinks.path) for s in segments])
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)


def _link_token_files(
    layout: Layout, segments: Sequence[Segment], folder: Path, final: Path
) -> Iterable[TokenFile]:
    number = 0
    for segment in segments:
        for entry in segment.token_files:
            name = f"t{number:04d}.parquet"
            source = layout.root / entry.file.path
            try:
                os.link(source, folder / "tm" / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, folder / "tm" / name)
            relative = layout.relative(final / "tm" / name)
            file = File(relative, entry.file.rows, entry.file.bytes, entry.file.sha256)
            yield TokenFile(file, entry.first_context, entry.end_context, entry.base_context)
            number += 1
