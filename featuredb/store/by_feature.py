"""The primary copy: activations sorted by (feature, position), found through a directory."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.files.location import Root, load_array
from featuredb.store.files.parquet import ParquetFiles, chunk_to_numpy
from featuredb.store.positions import without_stride
from featuredb.store.snapshot import FeatureFile, Segment
from featuredb.store.values import value_encoding

UInt32Array = npt.NDArray[np.uint32]


class FeatureRows(NamedTuple):
    """Rows of the by-feature copy, all [n]. activation is float16 or float32, as stored."""

    feature_id: UInt32Array
    position: UInt32Array
    activation: schemas.FloatArray


class FeatureFileWriter:
    """Writes rows, sorted by (feature_id, position), into one Parquet file, a piece at a time.

    Row groups are of `schemas.FEATURE_ROW_GROUP` rows however the pieces were cut, which is what
    lets a lookup find them without reading the footer's statistics. rows: written so far.

    feature_id dictionary, position DELTA_BINARY_PACKED, activation as `value_encoding` says of
    the first row group, zstd-1.

    stride: what is added to positions from one feature to the next, modulo 2**32. See `stride_of`.
    """

    def __init__(self, path: Path, values: str, stride: int) -> None:
        self.rows = 0
        self._values = values
        self._stride = np.uint32(stride)
        self._schema = schemas.by_feature(values)
        self._waiting: list[pa.Table] = []
        self._n_waiting = 0
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: FeatureRows) -> None:
        """Append rows, which come after all those before them."""
        values = rows.activation.astype(self._values, copy=False)
        position = rows.position + rows.feature_id * self._stride
        self._waiting.append(
            pa.table(
                [
                    pa.array(rows.feature_id, pa.uint32()),
                    pa.array(position, pa.uint32()),
                    pa.array(values, schemas.value_type(self._values)),
                ],
                schema=self._schema,
            )
        )
        self.rows += len(rows.position)
        self._n_waiting += len(rows.position)
        self._flush(self._n_waiting - self._n_waiting % schemas.FEATURE_ROW_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Write the rest and the footer. If the block failed, its error is raised."""
        if failed is None:
            try:
                self._flush(self._n_waiting)
                self._writer = self._writer or self._open(np.empty(0, self._values))
                self._writer.close()
                return
            except BaseException:
                self._let_go()
                raise
        self._let_go()

    def _let_go(self) -> None:
        """Close the incomplete file. On a full disk closing fails too."""
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()

    def _open(self, first: schemas.FloatArray) -> pq.ParquetWriter:
        encoding = value_encoding(first)
        return pq.ParquetWriter(
            self._path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["feature_id"] if encoding else ["feature_id", "activation"],
            column_encoding={
                "position": "DELTA_BINARY_PACKED",
                **({"activation": encoding} if encoding else {}),
            },
            data_page_version="2.0",
            write_statistics=["feature_id"],
        )

    def _flush(self, rows: int) -> None:
        if not rows:
            return
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            first = table.column("activation").slice(0, schemas.FEATURE_ROW_GROUP)
            self._writer = self._open(chunk_to_numpy(first))
        self._writer.write_table(table.slice(0, rows), row_group_size=schemas.FEATURE_ROW_GROUP)
        self._waiting = [table.slice(rows)]
        self._n_waiting -= rows


def write_feature_file(path: Path, rows: FeatureRows, values: str, stride: int) -> None:
    """Write rows, already sorted by (feature_id, position), as one Parquet file."""
    with FeatureFileWriter(path, values, stride) as writer:
        writer.write(rows)


def directory_of(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """Row offsets uint64 [d_sae + 1] from rows per feature [d_sae]."""
    directory = np.zeros(len(counts) + 1, dtype=np.uint64)
    np.cumsum(counts, out=directory[1:])
    return directory


class SegmentByFeature:
    """Reads one segment's primary copy. A lookup touches the row groups it needs and no other."""

    def __init__(self, root: Root, segment: Segment, files: ParquetFiles) -> None:
        self.segment = segment
        self._root = root
        self._files = files
        self._last_rows = np.array(
            [f.first_row + f.file.rows for f in segment.feature_files], dtype=np.int64
        )

    @cached_property
    def directory(self) -> npt.NDArray[np.uint64]:
        """Row offsets, uint64 [d_sae + 1]: feature f owns rows directory[f] to directory[f+1]."""
        return load_array(self._root, self.segment.directory.path)

    def count(self, feature: int) -> int:
        """Stored activations of one feature in this segment."""
        return int(self.directory[feature + 1] - self.directory[feature])

    def feature(self, feature: int) -> tuple[UInt32Array, schemas.FloatArray]:
        """(position uint32 [n] ascending, activation [n]) of one feature."""
        start, stop = int(self.directory[feature]), int(self.directory[feature + 1])
        rows = self._rows(start, stop, ["position", "activation"], feature)
        return rows.position, rows.activation

    def positions(self, feature: int) -> UInt32Array:
        """Only the positions of one feature, uint32 [n] ascending."""
        start, stop = int(self.directory[feature]), int(self.directory[feature + 1])
        return self._rows(start, stop, ["position"], feature).position

    def rows(self, start: int, stop: int, *, with_features: bool = True) -> FeatureRows:
        """Rows start <= i < stop of the segment, in order. feature_id is empty unless requested."""
        columns = ["position", "activation"]
        if with_features:
            columns.insert(0, "feature_id")
        return self._rows(start, stop, columns, None)

    def _rows(self, start: int, stop: int, columns: list[str], feature: int | None) -> FeatureRows:
        """feature: the one that all rows belong to, if given."""
        pieces: list[FeatureRows] = []
        first = int(np.searchsorted(self._last_rows, start, side="right"))
        for index in range(first, len(self.segment.feature_files)):
            entry = self.segment.feature_files[index]
            if entry.first_row >= stop:
                break
            if entry.file.rows:
                pieces.append(self._slice(entry, start, stop, columns, feature))
        if not pieces:
            empty = np.empty(0, dtype=self.segment.values)
            return FeatureRows(np.empty(0, np.uint32), np.empty(0, np.uint32), empty)
        if len(pieces) == 1:
            return pieces[0]
        return FeatureRows(*(np.concatenate(column) for column in zip(*pieces, strict=True)))

    def group_end(self, row: int) -> int:
        """End of the row group with row `row` - 1, which is decoded anyway."""
        entry = self.segment.feature_files[int(np.searchsorted(self._last_rows, row, side="left"))]
        size = schemas.FEATURE_ROW_GROUP
        groups = -(-(row - entry.first_row) // size)
        return entry.first_row + min(entry.file.rows, groups * size)

    def _slice(
        self, entry: FeatureFile, start: int, stop: int, columns: list[str], feature: int | None
    ) -> FeatureRows:
        low = max(0, start - entry.first_row)
        high = min(entry.file.rows, stop - entry.first_row)
        size = schemas.FEATURE_ROW_GROUP
        groups = list(range(low // size, (high - 1) // size + 1))
        table = self._files.read(entry.file.path, groups, columns)
        table = table.slice(low - groups[0] * size, high - low)
        features, position = np.empty(0, np.uint32), chunk_to_numpy(table.column("position"))
        if "feature_id" in columns:
            features = chunk_to_numpy(table.column("feature_id"))
        if entry.stride:
            owner: int | UInt32Array = features
            if feature is not None:
                owner = feature
            elif "feature_id" not in columns:
                owner = self._features(entry.first_row + low, entry.first_row + high)
            position = without_stride(position, owner, entry.stride)
        activation = np.empty(0, self.segment.values)
        if "activation" in columns:
            activation = chunk_to_numpy(table.column("activation"))
        return FeatureRows(features, position, activation)

    def _features(self, start: int, stop: int) -> UInt32Array:
        """Feature ids of rows start <= i < stop, uint32 [stop - start], by the directory."""
        first = int(np.searchsorted(self.directory, start, side="right")) - 1
        end = int(np.searchsorted(self.directory, stop, side="left"))
        edges = np.clip(self.directory[first : end + 1].astype(np.int64), start, stop)
        return np.repeat(np.arange(first, end, dtype=np.uint32), np.diff(edges))
