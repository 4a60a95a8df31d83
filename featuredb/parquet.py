"""Open Parquet files, kept open, so that a warm lookup does not parse a footer again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import CorruptDatabaseError


class ParquetFiles:
    """At most `limit` open files of one database, least recently used closed first.

    One lock guards every read: a `ParquetFile` is not safe to read from two threads, and reads
    here are a few row groups long.
    """

    def __init__(self, root: Path, limit: int = 300) -> None:
        self._root = root
        self._limit = limit
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
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
                if groups is None:
                    return file.read(columns=columns, use_threads=False)
                return file.read_row_groups(list(groups), columns=columns, use_threads=False)
            except (OSError, pa.ArrowException, IndexError) as error:
                raise unreadable(self._root, path, error) from error

    def metadata(self, path: str) -> pq.FileMetaData:
        """A file's footer. Raises `CorruptDatabaseError`."""
        with self._lock:
            try:
                return self._file(path).metadata
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self._root, path, error) from error

    def close(self) -> None:
        """Close every file; reading again opens them anew."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def _file(self, path: str) -> pq.ParquetFile:
        file = self._open.get(path)
        if file is None:
            file = pq.ParquetFile(self._root / path, memory_map=True)
            self._open[path] = file
            if len(self._open) > self._limit:
                _, oldest = self._open.popitem(last=False)
                oldest.close()
        else:
            self._open.move_to_end(path)
        return file


def unreadable(root: Path, path: str, error: Exception) -> CorruptDatabaseError:
    """The error for a file of the store that cannot be read."""
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CorruptDatabaseError(
        f"{root / path} is missing or damaged ({first_line}): "
        "run `featuredb verify` to see what else is, and restore it from a copy"
    )


def chunk_to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column without nulls as one numpy array, copied only when it has several chunks."""
    if column.num_chunks == 1:
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=False)
        return array
    if column.num_chunks == 0:
        return np.empty(0, dtype=column.type.to_pandas_dtype())
    return np.concatenate([c.to_numpy(zero_copy_only=False) for c in column.chunks])
