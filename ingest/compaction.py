"""Merge segments of one SAE into one, its features in bucket files.

Buckets may be written in any order and by several processes, with `write_bucket`. The segment
appears when all of them are there. `Compaction.memory` bounds memory for any number of
activations: a bucket is merged in pieces, a dense feature in several.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.by_feature import FeatureFileWriter, FeatureRows, directory_of
from featuredb.store.files.atomic import (
    folder_in_place,
    fsync_path,
    remove_tree,
    sweep,
    temporary_name,
)
from featuredb.store.files.memory import return_freed_memory
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.positions import stride_of
from featuredb.store.snapshot import Draft, FeatureFile, File, Segment, TokenFile
from ingest.derive.merged_segments import MergedSegments, Piece
from ingest.derive.profiles import Profiler, Profiles
from ingest.tokens.lookup import TokenLookup

ROWS_PER_BUCKET = 1 << 20
"""Target rows per bucket file: about 32 row groups. Its footer is parsed in well under 1 ms."""

FAN_IN = 128
"""Segments merged at once. Each keeps a file open and a decoded row group. More are merged in
rounds."""

_BYTES_PER_SEGMENT = 2 << 20
"""Memory of an open segment per thread that reads it. Half of the memory is for these, half for
the piece."""

_ROWS_PER_PIECE = 1 << 20
_BYTES_PER_ROW = 240
"""Peak memory per row of a piece: its columns, counts and encoding."""

_THREADS = 4


class Compaction(NamedTuple):
    """Segments of one SAE and the segment they become.

    memory: bytes to work in. profiled: also compute the features' profiles.
    """

    segment_id: str
    sae: str
    d_sae: int
    bits: int
    segments: tuple[Segment, ...]
    memory: int
    profiled: bool = True

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
        """``float32`` if any segment has a value beyond float16."""
        wide = any(s.values == "float32" for s in self.segments)
        return "float32" if wide else "float16"


class Place(NamedTuple):
    """A bucket of the merged segment: features first <= id < end, rows from first_row."""

    number: int
    first_feature: int
    end_feature: int
    first_row: int


class Merged(NamedTuple):
    """A written bucket, and the profiles of its features if requested."""

    file: FeatureFile
    profiles: Profiles | None


Merge = Callable[[Layout, Draft, Compaction, Path, Sequence[Place]], Iterable[Merged]]
"""Writes buckets below a folder and yields them in order."""


def compact_segments(
    layout: Layout, draft: Draft, job: Compaction, merge: Merge
) -> tuple[Segment, Profiles | None]:
    """Merge segments that cover disjoint contexts into one, atomically.

    Profiles are computed in the same pass. By-token files are already in order and are linked,
    not rewritten.
    """
    final = layout.segment(job.segment_id)
    remove_tree(final)
    job = _in_rounds(layout, draft, job, merge)
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
        buckets = tuple(merge(layout, draft, job, folder, places))
        sweep(folder / "fm")
        np.save(folder / "directory.npy", directory)
        sinks = _join_sinks(layout, source.segments, folder / "sinks.parquet")
        token_files = [entry for part in source.segments for entry in part.token_files]
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
            token_files=tuple(link_token_files(layout, token_files, folder, final)),
            directory=file_entry(layout, folder / "directory.npy", folder, final, job.d_sae + 1),
            sinks=file_entry(layout, folder / "sinks.parquet", folder, final, sinks),
        )
    if not job.profiled:
        return segment, None
    return segment, Profiles.joined([b.profiles for b in buckets if b.profiles is not None])


def _in_rounds(layout: Layout, draft: Draft, job: Compaction, merge: Merge) -> Compaction:
    """The same compaction of as many segments as can be open, after merging adjacent ones."""
    segments = sorted(job.segments, key=lambda s: s.first_context)
    number = 0
    most = max(2, min(FAN_IN, job.memory // 2 // _BYTES_PER_SEGMENT))
    while len(segments) > most:
        merged = []
        for at in range(0, len(segments), most):
            adjacent = tuple(segments[at : at + most])
            part = job._replace(
                segment_id=f"{job.segment_id}-m{number}", segments=adjacent, profiled=False
            )
            number += 1
            merged.append(compact_segments(layout, draft, part, merge)[0])
        segments = merged
    return job._replace(segments=tuple(segments))


def merge_here(
    layout: Layout,
    draft: Draft,
    job: Compaction,
    folder: Path,
    places: Sequence[Place],
    threads: int | None = None,
) -> Iterator[Merged]:
    """A `Merge` in this process, in a few threads. Each has a range of adjacent buckets."""
    threads = min(threads or _threads(job), max(1, len(places)))
    lookup = TokenLookup(layout, draft)
    size = -(-len(places) // threads)
    shares = [places[at : at + size] for at in range(0, len(places), size)]
    alone = job._replace(memory=job.memory // len(shares))

    def work(share: Sequence[Place]) -> list[Merged]:
        source = MergedSegments(layout, job.segments, job.d_sae, job.bits)
        merged = []
        try:
            for place in share:
                merged.append(write_bucket(layout, alone, source, lookup, folder, place))
                # Reading many segments in turn fragments the heap.
                return_freed_memory()
        finally:
            source.close()
        return merged

    with ThreadPoolExecutor(threads) as pool:
        for merged in pool.map(work, shares):
            yield from merged


def profile_segments(
    layout: Layout, draft: Draft, job: Compaction, threads: int | None = None
) -> Profiles:
    """The profiles of an SAE's features over all of its segments."""
    lookup = TokenLookup(layout, draft)
    source = MergedSegments(layout, job.segments, job.d_sae, job.bits)
    source.close()
    cuts = source.boundaries(ROWS_PER_BUCKET, schemas.MAX_BUCKETS)
    threads = min(threads or _threads(job), len(cuts) - 1)
    size = -(-(len(cuts) - 1) // threads)
    edges = [cuts[i] for i in range(0, len(cuts) - 1, size)] + [cuts[-1]]
    most_rows = _piece_rows(job.memory // threads)

    def work(features: tuple[int, int]) -> Profiles:
        merged = MergedSegments(layout, job.segments, job.d_sae, job.bits)
        try:
            profiler = Profiler(merged, lookup, job.recorded_tokens, *features)
            for piece in merged.pieces(*features, most_rows):
                profiler.add(piece)
            return profiler.finish()
        finally:
            merged.close()

    with ThreadPoolExecutor(threads) as pool:
        return Profiles.joined(list(pool.map(work, pairwise(edges))))


def write_bucket(
    layout: Layout,
    job: Compaction,
    source: MergedSegments,
    lookup: TokenLookup,
    folder: Path,
    place: Place,
) -> Merged:
    """Write one bucket below `folder`, which will become the segment's, and profile it."""
    first, end = place.first_feature, place.end_feature
    path = folder / "fm" / f"b{place.number:03d}.parquet"
    # On a cluster a worker assumed dead may still write a bucket that another repeats.
    temporary = temporary_name(path)
    profiler = Profiler(source, lookup, job.recorded_tokens, first, end) if job.profiled else None
    stride = stride_of(job.end_context - job.first_context, job.bits)
    with FeatureFileWriter(temporary, job.values, stride) as writer:
        for piece in source.pieces(first, end, _piece_rows(job.memory)):
            writer.write(_to_rows(piece, job.first_context, job.bits))
            if profiler is not None:
                profiler.add(piece)
    fsync_path(temporary)
    os.replace(temporary, path)
    entry = file_entry(layout, path, folder, layout.segment(job.segment_id), writer.rows)
    return Merged(
        FeatureFile(entry, first, end, place.first_row, stride),
        None if profiler is None else profiler.finish(),
    )


def _threads(job: Compaction) -> int:
    """As many threads as have memory to open every segment."""
    room = job.memory // 2 // (_BYTES_PER_SEGMENT * len(job.segments))
    return max(1, min(_THREADS, os.cpu_count() or 1, room))


def _piece_rows(memory: int) -> int:
    """Rows of a piece. More would not fit the processor's cache."""
    return max(schemas.FEATURE_ROW_GROUP, min(_ROWS_PER_PIECE, memory // 2 // _BYTES_PER_ROW))


def _to_rows(piece: Piece, base: int, bits: int) -> FeatureRows:
    position = (piece.context_id - base).astype(np.uint32)
    position <<= np.uint32(bits)
    position |= piece.token_index.view(np.uint32)
    return FeatureRows(piece.feature_id, position, piece.activation)


def _join_sinks(layout: Layout, segments: Iterable[Segment], path: Path) -> int:
    table = pa.concat_tables([pq.read_table(layout.root / s.sinks.path) for s in segments])
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)


def link_token_files(
    layout: Layout, entries: Iterable[TokenFile], folder: Path, final: Path
) -> Iterator[TokenFile]:
    """Link by-token files into the folder that will become `final`."""
    for number, entry in enumerate(entries):
        name = f"t{number:04d}.parquet"
        source = layout.root / entry.file.path
        try:
            os.link(source, folder / "tm" / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, folder / "tm" / name)
        relative = layout.relative(final / "tm" / name)
        file = File(relative, entry.file.rows, entry.file.bytes, entry.file.sha256)
        yield msgspec.structs.replace(entry, file=file)
