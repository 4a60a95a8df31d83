"""Compaction: many runs of one SAE become one segment with its features in bucket files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb import schemas
from featuredb.feature_major import FeatureRows, directory_of, write_feature_file
from featuredb.files import folder_in_place, remove_tree
from featuredb.layout import Layout
from featuredb.snapshot import FeatureFile, File, Segment, TokenFile
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


def compact_segments(
    layout: Layout, job: Compaction, on_bucket: Callable[[Bucket], None]
) -> Segment:
    """Merge segments that cover disjoint contexts into one, in place in one step.

    Memory is bounded by the largest bucket (about `ROWS_PER_BUCKET` rows, or one feature's).
    `on_bucket` sees every bucket on its way, so that what is derived needs no second pass.
    The token-major files are already in order and are linked, not rewritten.
    """
    final = layout.segment(job.segment_id)
    remove_tree(final)
    merged = MergedSegments(layout, job.segments, job.d_sae, job.bits)
    base = min(s.first_context for s in job.segments)
    end = max(s.end_context for s in job.segments)
    values = "float32" if any(s.values == "float32" for s in job.segments) else "float16"
    try:
        with folder_in_place(final) as folder:
            (folder / "fm").mkdir()
            (folder / "tm").mkdir()
            feature_files: list[FeatureFile] = []
            first_row = 0
            boundaries = merged.boundaries(ROWS_PER_BUCKET, schemas.MAX_BUCKETS)
            for number, bucket in enumerate(merged.buckets(boundaries)):
                path = folder / "fm" / f"b{number:03d}.parquet"
                write_feature_file(path, _to_rows(bucket, base, job.bits), values)
                n = len(bucket.feature)
                entry = file_entry(layout, path, folder, final, n)
                feature_files.append(
                    FeatureFile(entry, bucket.first_feature, bucket.end_feature, first_row)
                )
                first_row += n
                on_bucket(bucket)
            np.save(folder / "directory.npy", directory_of(merged.counts))
            sinks = _join_sinks(layout, merged.segments, folder / "sinks.parquet")
            return Segment(
                id=job.segment_id,
                sae=job.sae,
                level=1,
                first_context=base,
                end_context=end,
                rows=first_row,
                values="float32" if values == "float32" else "float16",
                recorded_tokens=sum(s.recorded_tokens for s in job.segments),
                feature_files=tuple(feature_files),
                token_files=tuple(_link_token_files(layout, merged.segments, folder, final)),
                directory=file_entry(
                    layout, folder / "directory.npy", folder, final, job.d_sae + 1
                ),
                sinks=file_entry(layout, folder / "sinks.parquet", folder, final, sinks),
            )
    finally:
        merged.close()


def fits_one_segment(segments: Sequence[Segment], bits: int) -> bool:
    """Whether positions local to the merged segment still fit in 32 bits."""
    base = min(s.first_context for s in segments)
    end = max(s.end_context for s in segments)
    return (end - base) << bits <= 1 << 32


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
