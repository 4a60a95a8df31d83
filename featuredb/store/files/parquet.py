"""Pool of open Parquet files, so that warm lookups do not parse footers again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store.files.location import Root, location_of, unreadable


class ParquetFiles:
    """At most `limit` open files of one database, least recently used closed first.

    One lock guards every read: a `ParquetFile` is not thread-safe, and reads span only a few row
    groups. For a remote database every read first fetches all the ranges it needs in parallel.
    """

    def __init__(self, root: Root, limit: int = 300, *, memory_map: bool = True) -> None:
        self._root = root
        self._location = location_of(root)
        self._memory_map = memory_map
        self._limit = limit
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._starts: dict[str, npt.NDArray[np.int64]] = {}
        self._lock = threading.Lock()

    def read(
        self, path: str, groups: Sequence[int] | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Row groups of a file (all when None) as one table.

        Raises `CorruptDatabaseError` naming the file when it is missing or unreadable.
        """
        with self._lock:
            try:
                file = self._file(path)
                self._fetch(file, path, groups, columns)
                if groups is None:
                    return file.read(columns=columns, use_threads=False)
                return file.read_row_groups(list(groups), columns=columns, use_threads=False)
            except (OSError, pa.ArrowException, IndexError) as error:
                raise unreadable(self._root, path, error) from error

    def rows(self, path: str, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Rows start <= i < stop of a file, decoding only the row groups that hold them.

        An empty range gives no rows and every column. Raises `CorruptDatabaseError`.
        """
        starts = self.group_starts(path)
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, max(stop, start + 1), side="left"))
        table = self.read(path, range(first, min(last, len(starts) - 1)), columns)
        return table.slice(start - int(starts[first]), stop - start)

    def group_starts(self, path: str) -> npt.NDArray[np.int64]:
        """First row of each row group, followed by the number of rows. Cached."""
        starts = self._starts.get(path)
        if starts is None:
            metadata = self.metadata(path)
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
            self._starts[path] = starts
        return starts

    def metadata(self, path: str) -> pq.FileMetaData:
        """A file's footer. Raises `CorruptDatabaseError`."""
        with self._lock:
            try:
                return self._file(path).metadata
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self._root, path, error) from error

    def fetch(self, path: str, groups: Iterable[int], columns: list[str] | None = None) -> None:
        """Prefetch row groups of a remote file.

        Does nothing for a local file. Raises as `read`.
        """
        if self._location.folder is not None:
            return  # Opening the file would close another.
        with self._lock:
            try:
                self._fetch(self._file(path), path, sorted(set(groups)), columns)
            except (OSError, pa.ArrowException, IndexError) as error:
                raise unreadable(self._root, path, error) from error

    def close(self) -> None:
        """Close every file. Later reads reopen them."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def _file(self, path: str) -> pq.ParquetFile:
        file = self._open.get(path)
        if file is None:
            file = self._location.parquet(path, memory_map=self._memory_map)
            self._open[path] = file
            if len(self._open) > self._limit:
                _, oldest = self._open.popitem(last=False)
                oldest.close()
        else:
            self._open.move_to_end(path)
        return file

    def _fetch(
        self,
        file: pq.ParquetFile,
        path: str,
        groups: Sequence[int] | None,
        columns: list[str] | None,
    ) -> None:
        self._location.prefetch(path, lambda: _chunks(file.metadata, groups, columns))


def _chunks(
    metadata: pq.FileMetaData, groups: Sequence[int] | None, columns: list[str] | None
) -> Iterator[tuple[int, int]]:
    """Byte ranges of the column chunks of some row groups and columns (all when None)."""
    for number in range(metadata.num_row_groups) if groups is None else groups:
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            chunk = group.column(place)
            if columns is None or chunk.path_in_schema.partition(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                yield start, start + chunk.total_compressed_size


class GroupRanges(NamedTuple):
    """Smallest and largest (sae, feature_id) statistics of each row group of a table."""

    first_sae: list[str]
    last_sae: list[str]
    first_feature: list[int]
    last_feature: list[int]

    @classmethod
    def of(cls, files: ParquetFiles, path: str) -> GroupRanges:
        """From the footer of a table whose first columns are sae and feature_id."""
        metadata = files.metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if metadata.num_rows == 0:
            groups = []
        saes = [g.column(0).statistics for g in groups]
        features = [g.column(1).statistics for g in groups]
        return cls(
            [s.min for s in saes],
            [s.max for s in saes],
            [f.min for f in features],
            [f.max for f in features],
        )

    def holding(self, sae: str, feature: int) -> list[int]:
        """The row groups that may have rows of a feature."""
        return [
            group
            for group, (first_sae, last_sae, first, last) in enumerate(zip(*self, strict=True))
            if first_sae <= sae <= last_sae and first <= feature <= last
        ]


def chunk_to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column without nulls as one numpy array, copied only when it has several chunks."""
    if column.num_chunks == 1:
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=False)
        return array
    if column.num_chunks == 0:
        return np.empty(0, dtype=column.type.to_pandas_dtype())
    return np.concatenate([c.to_numpy(zero_copy_only=False) for c in column.chunks])


def list_values(lists: pa.ListArray) -> pa.Array:
    """The values of a column of lists without nulls, one after another.

    As `flatten`, which imports `pyarrow.compute`: a tenth of a command's start.
    """
    start, stop = lists.offsets[0].as_py(), lists.offsets[len(lists)].as_py()
    return lists.values[start:stop]


def float_array(values: npt.NDArray[np.float32]) -> pa.FloatArray:
    """float32 [n] as an Arrow array over the same memory.

    As `pyarrow.array`, which imports `numpy.ma` when it is given an array.
    """
    return pa.FloatArray.from_buffers(pa.float32(), len(values), [None, pa.py_buffer(values)])
