"""Where a database's files are, in a folder or behind a URL, and how they are read there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from featuredb.errors import CorruptDatabaseError, FeatureDBError, first_line
from featuredb.store.files.arrays import remote_array, remote_flat, remote_matrix
from featuredb.store.files.remote import RemoteFile, RemoteFiles, Span

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

    from featuredb.store.snapshot import File

Root = Path | RemoteFiles
"""A database's absolute folder, or its files behind a URL."""


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

    def prefetch_footers(self, paths: Iterable[str]) -> None:
        """Fetch the footers of Parquet files that will be opened, where that saves requests."""

    def copied(self, folder: str, files: Sequence[File]) -> AbstractContextManager[Path]:
        """A local root below which `folder` holds `files`, for the block."""

    def duckdb_files(self) -> AbstractFileSystem | None:
        """The file system that DuckDB must have to read the files, None for its own."""

    @property
    def duckdb_root(self) -> str:
        """The root as DuckDB's `read_parquet` must be given it."""

    @property
    def folder(self) -> Path | None:
        """The root where files can be memory-mapped, else None."""

    @property
    def address(self) -> tuple[str, Mapping[str, Any] | None]:
        """Path or URL, and the options of its file system: what opens the database again."""

    @property
    def failure(self) -> FeatureDBError | None:
        """Why DuckDB could not read a file, if its message does not say."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder, memory-mapped."""

    root: Path
    failure = None

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

    def prefetch_footers(self, paths: Iterable[str]) -> None:
        return None

    def copied(self, folder: str, files: Sequence[File]) -> AbstractContextManager[Path]:
        return nullcontext(self.root)

    def duckdb_files(self) -> AbstractFileSystem | None:
        return None

    @property
    def duckdb_root(self) -> str:
        # Unescaped, these would match other folders.
        return re.sub(r"[*?\[]", r"[\g<0>]", self.root.as_posix())

    @property
    def folder(self) -> Path | None:
        return self.root

    @property
    def address(self) -> tuple[str, Mapping[str, Any] | None]:
        return str(self.root), None


@dataclass(frozen=True)
class RangedFiles:
    """Files behind a URL: small ones are fetched whole, of others the ranges that are read."""

    root: RemoteFiles
    folder = None

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

    def prefetch_footers(self, paths: Iterable[str]) -> None:
        self.root.fetch_ends(paths)

    def copied(self, folder: str, files: Sequence[File]) -> AbstractContextManager[Path]:
        return self.root.copied(folder, files)

    def duckdb_files(self) -> AbstractFileSystem | None:
        # Imported here: fsspec takes time to import, and a local database does not need it.
        from featuredb.store.files.duckdb_files import DuckDBFileSystem

        return DuckDBFileSystem(self.root)

    @property
    def duckdb_root(self) -> str:
        return self.root.url  # DuckDB gets its files by name

    @property
    def address(self) -> tuple[str, Mapping[str, Any] | None]:
        return self.root.url, self.root.storage_options

    @property
    def failure(self) -> FeatureDBError | None:
        return self.root.failure


def location_of(root: Root) -> Location:
    """How the files of a database at `root` are read."""
    return RangedFiles(root) if isinstance(root, RemoteFiles) else LocalFiles(root)


def load_array(root: Root, path: str, *, whole: bool = False) -> npt.NDArray[Any]:
    """A ``.npy`` file of the store. Raises `CorruptDatabaseError`.

    Memory-mapped in a folder. Of a remote database, small arrays are loaded into memory, as is any
    array with `whole`. Others are read by rows on demand (`RangedArray`).
    """
    return location_of(root).array(path, whole=whole)


def unreadable(root: Root, path: str, error: Exception) -> CorruptDatabaseError:
    """The error for a file of the store that cannot be read."""
    return CorruptDatabaseError(
        f"{root / path} is missing or damaged ({first_line(error)}): "
        "run `featuredb verify` to see what else is, and restore it from a copy"
    )
