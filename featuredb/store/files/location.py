"""Where a database's files are, in a folder or behind a URL, and how they are read there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from featuredb.errors import CorruptDatabaseError, first_line
from featuredb.store.files.arrays import remote_array, remote_flat, remote_matrix
from featuredb.store.files.remote import RemoteFile, RemoteFiles, Span


class Location(Protocol):
    """How the files below a database's root are read. Paths are relative to the root."""

    def parquet(self, path: str, *, memory_map: bool) -> pq.ParquetFile:
        """An open Parquet file."""

    def prefetch(self, path: str, spans: Callable[[], Iterable[Span]]) -> None:
        """Fetch byte ranges that will be read, where that saves requests."""

    def array(self, path: str, *, whole: bool = False) -> npt.NDArray[Any]:
        """A ``.npy`` file. whole: all of it will be read."""

    def flat(self, path: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A headerless binary file."""

    def is_small(self, path: str, rows: int, few: int) -> bool:
        """Whether a table of `rows` rows, of which `few` fit in memory, is cheapest read whole."""

    @property
    def prefetches(self) -> bool:
        """Whether `prefetch` does anything."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder, memory-mapped."""

    root: Path
    prefetches = False

    def parquet(self, path: str, *, memory_map: bool) -> pq.ParquetFile:
        return pq.ParquetFile(self.root / path, memory_map=memory_map)

    def prefetch(self, path: str, spans: Callable[[], Iterable[Span]]) -> None:
        return None

    def array(self, path: str, *, whole: bool = False) -> npt.NDArray[Any]:
        try:
            mapped: npt.NDArray[Any] = np.load(self.root / path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise unreadable(self.root, path, error) from error
        return mapped

    def flat(self, path: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        file = self.root / path
        empty = file.stat().st_size == 0
        return np.empty(0, dtype) if empty else np.memmap(file, dtype=dtype, mode="r")

    def is_small(self, path: str, rows: int, few: int) -> bool:
        return rows <= few


@dataclass(frozen=True)
class RangedFiles:
    """Files behind a URL: small ones are fetched whole, of others the ranges that are read."""

    root: RemoteFiles
    prefetches = True

    def parquet(self, path: str, *, memory_map: bool) -> pq.ParquetFile:
        return pq.ParquetFile(RemoteFile(self.root, path))

    def prefetch(self, path: str, spans: Callable[[], Iterable[Span]]) -> None:
        if not self.root.is_whole(path):
            self.root.fetch(path, spans())

    def array(self, path: str, *, whole: bool = False) -> npt.NDArray[Any]:
        return remote_matrix(self.root, path) if whole else remote_array(self.root, path)

    def flat(self, path: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return remote_flat(self.root, path, dtype)

    def is_small(self, path: str, rows: int, few: int) -> bool:
        return self.root.is_whole(path)


def location_of(root: Path | RemoteFiles) -> Location:
    """How the files of a database at `root` are read."""
    return RangedFiles(root) if isinstance(root, RemoteFiles) else LocalFiles(root)


def load_array(root: Path | RemoteFiles, path: str, *, whole: bool = False) -> npt.NDArray[Any]:
    """A ``.npy`` file of the store. Raises `CorruptDatabaseError`.

    Memory-mapped in a folder. Of a remote database, small arrays are loaded into memory, as is any
    array with `whole`. Others are read by rows on demand (`RangedArray`).
    """
    return location_of(root).array(path, whole=whole)


def unreadable(root: Path | RemoteFiles, path: str, error: Exception) -> CorruptDatabaseError:
    """The error for a file of the store that cannot be read."""
    return CorruptDatabaseError(
        f"{root / path} is missing or damaged ({first_line(error)}): "
        "run `featuredb verify` to see what else is, and restore it from a copy"
    )
