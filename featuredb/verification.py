"""Is everything there, unchanged, and does it agree with itself?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from featuredb.errors import CorruptDatabaseError
from featuredb.feature_major import FeatureMajor
from featuredb.files import sha256_of
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import File, Segment, Snapshot, read_snapshot
from featuredb.token_major import TokenMajor
from featuredb.vectors import Directions, read_directions, unit_rows


@dataclass(frozen=True)
class Problem:
    """Something wrong: the file or part, what, and what to do."""

    where: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What a verification looked at and found. problems is empty for a sound database."""

    files: int
    bytes: int
    activations: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{p.where}: {p.what}; {p.remedy}" for p in self.problems]
        state = "sound" if self.ok else f"{len(self.problems)} problems"
        lines.append(
            f"{state}: {self.files:,} files, {self.bytes:,} bytes, "
            f"{self.activations:,} activations checked"
        )
        return "\n".join(lines)


_RESTORE = "restore this file from a copy, or ingest again"


def verify(path: str | Path) -> Report:
    """Check the live snapshot of the database at `path`.

    Every file's size and SHA-256; the row counts Parquet states; in each segment the sort order
    and the directory of the feature-major copy, and that both copies hold the same activations;
    that LanceDB's directions are those of the matrices; that the SQL catalog opens.
    Raises `DatabaseError` when there is no readable snapshot to check against.
    """
    layout = Layout(Path(path).expanduser().absolute())
    snapshot = read_snapshot(layout)
    problems = [p for file in snapshot.files() for p in _check_file(layout, file)]
    if not problems:
        problems += _check_segments(layout, snapshot)
        problems += _check_vectors(layout, snapshot)
    problems += _check_catalog(layout)
    files = snapshot.files()
    return Report(
        files=len(files),
        bytes=sum(f.bytes for f in files),
        activations=sum(s.rows for s in snapshot.segments),
        problems=tuple(problems),
    )


def _check_file(layout: Layout, file: File) -> Iterator[Problem]:
    path = layout.root / file.path
    try:
        size = path.stat().st_size
        if size != file.bytes:
            yield Problem(file.path, f"has {size} bytes, should have {file.bytes}", _RESTORE)
            return
        if sha256_of(path) != file.sha256:
            yield Problem(file.path, "has changed since it was written (SHA-256)", _RESTORE)
            return
    except OSError as error:
        yield Problem(file.path, f"cannot be read ({error.strerror})", _RESTORE)
        return
    if path.suffix == ".parquet":
        rows = pq.read_metadata(path).num_rows
        if rows != file.rows:
            yield Problem(file.path, f"has {rows} rows, should have {file.rows}", _RESTORE)


def _check_segments(layout: Layout, snapshot: Snapshot) -> Iterator[Problem]:
    files = ParquetFiles(layout.root)
    try:
        for segment in snapshot.segments:
            d_sae = snapshot.sae(segment.sae).d_sae
            try:
                yield from _check_segment(layout, segment, d_sae, files, snapshot.position_bits)
            except CorruptDatabaseError as error:
                yield Problem(f"segment {segment.id}", str(error), _RESTORE)
    finally:
        files.close()


def _check_segment(
    layout: Layout, segment: Segment, d_sae: int, files: ParquetFiles, bits: int
) -> Iterator[Problem]:
    """Sort order, directory, and the two copies against each other, file by file.

    The copies hold the same set when they agree on the number of rows and on an order-free
    checksum of (feature, position, value) over all of them.
    """
    name = f"segment {segment.id}"
    reader = FeatureMajor(layout.root, segment, files)
    directory = np.asarray(reader.directory)
    if len(directory) != d_sae + 1 or int(directory[-1]) != segment.rows:
        yield Problem(name, "its directory does not match its rows", _RESTORE)
        return
    counts = np.zeros(d_sae, np.int64)
    by_feature = 0
    last = -1
    for entry in segment.feature_files:
        rows = reader.rows(entry.first_row, entry.first_row + entry.file.rows)
        keys = (rows.feature_id.astype(np.int64) << 32) | rows.position
        if len(keys) and (int(keys[0]) <= last or not (keys[1:] > keys[:-1]).all()):
            yield Problem(entry.file.path, "is not sorted by (feature, position)", _RESTORE)
        last = int(keys[-1]) if len(keys) else last
        counts += np.bincount(rows.feature_id, minlength=d_sae)
        by_feature += _checksum(rows.feature_id, rows.position, rows.activation)
    if not (counts == directory[1:].astype(np.int64) - directory[:-1].astype(np.int64)).all():
        yield Problem(name, "its directory does not match its feature-major copy", _RESTORE)
    by_token = 0
    total = 0
    tokens = TokenMajor(segment, files, bits)
    for token_file in segment.token_files:
        got = tokens.file(token_file)
        if not (got.position[1:] > got.position[:-1]).all():
            yield Problem(token_file.file.path, "is not sorted by position", _RESTORE)
        shift = np.uint32((token_file.base_context - segment.first_context) << bits)
        position = np.repeat(got.position + shift, np.diff(got.offsets))
        by_token += _checksum(got.feature_id, position, got.activation)
        total += len(got.feature_id)
    if total != segment.rows or (by_token - by_feature) % 2**64:
        yield Problem(name, "its feature-major and token-major copies disagree", _RESTORE)


def _checksum(feature: np.ndarray, position: np.ndarray, activation: np.ndarray) -> int:
    """Sum, modulo 2**64, of a mixed 64-bit hash of each activation."""
    values = activation.astype(np.float32).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = (feature.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)
        mixed = key * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed = (mixed + values) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        return int(mixed.sum(dtype=np.uint64))


def _check_vectors(layout: Layout, snapshot: Snapshot) -> Iterator[Problem]:
    """LanceDB's files have no checksum in the snapshot, but the matrices made from them do."""
    for vectors in snapshot.vectors:
        where = f"vectors.lance/{vectors.table}"
        try:
            directions = read_directions(layout, vectors)
        except Exception as error:  # LanceDB raises whatever its Rust half says
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield Problem(where, f"cannot be read ({first_line})", _RESTORE)
            continue
        for name, matrix in zip(Directions._fields, directions, strict=True):
            kept = np.load(layout.root / getattr(vectors, name).path, mmap_mode="r")
            if not np.array_equal(unit_rows(matrix).astype(np.float16), kept):
                yield Problem(where, f"its {name} directions are not those ingested", _RESTORE)


def _check_catalog(layout: Layout) -> Iterator[Problem]:
    import duckdb

    name = layout.catalog.name
    try:
        with duckdb.connect(str(layout.catalog), read_only=True) as connection:
            connection.execute("SELECT count(*) FROM saes")
    except duckdb.Error as error:
        first_line = str(error).splitlines()[0]
        yield Problem(name, f"cannot be opened ({first_line})", _RESTORE)
