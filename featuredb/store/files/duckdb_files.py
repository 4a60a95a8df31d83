"""The files of a remote database for DuckDB, over what the handle has read of them already."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from featuredb.errors import FeatureDBError, RemoteError
from featuredb.store.files.remote import RemoteFile, RemoteFiles

_AHEAD_LEAST, _AHEAD_MOST = 1 << 18, 4 << 20
"""Bytes read ahead of a scan: twice as many at every step."""

_NEAR = 1 << 20
"""Reads at most this far apart, or within the read-ahead, belong to one scan."""

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class DuckDBFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The file system that DuckDB needs, for the scheme of one database's URL.

    Files of the snapshot come through its `RemoteFiles`. Their sizes are known, they never change,
    and nothing is read twice. Any other URL of the scheme goes to fsspec unchanged.
    """

    cachable = False

    def __init__(self, remote: RemoteFiles) -> None:
        super().__init__()
        self.protocol = remote.scheme
        self._remote = remote
        self._scans: dict[str, _Scan] = {}

    def glob(self, path: str, maxdepth: int | None = None, **options: Any) -> list[str]:
        """The path itself for a file of the snapshot, with any characters in it."""
        if self._relative(path) is not None:
            return [path]
        names = self._remote.fs.glob(path, maxdepth=maxdepth, **options)
        return [self._remote.fs.unstrip_protocol(name) for name in names]

    def unstrip_protocol(self, name: str) -> str:
        return name

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Raises `RemoteError` for writing below the database."""
        relative = self._relative(path)
        if relative is not None and mode in ("r", "rb"):
            return _File(self._remote, relative, self._scan(relative))
        if path.startswith(self._remote.url + "/") and mode not in ("r", "rb"):
            failure = RemoteError(f"{self._remote} is open for reading: write somewhere else")
            self._remote.failure = failure
            raise failure
        return self._remote.fs.open(path, mode, **options)

    def size(self, path: str) -> int:
        relative = self._relative(path)
        if relative is not None:
            return self._remote.size(relative)
        size: int = self._remote.fs.size(path)
        return size

    def modified(self, path: str) -> datetime:
        if self._relative(path) is not None:
            return _NEVER
        when: datetime = self._remote.fs.modified(path)
        return when

    def info(self, path: str, **options: Any) -> Any:
        relative = self._relative(path)
        if relative is not None:
            return {"name": path, "size": self._remote.size(relative), "type": "file"}
        return self._remote.fs.info(path, **options)

    def _scan(self, path: str) -> _Scan:
        return self._scans.setdefault(path, _Scan(self._remote, path))

    def _relative(self, path: str) -> str | None:
        """The path in the store of a file that the snapshot names."""
        place = path.removeprefix(self._remote.url + "/")
        return place if place != path and self._remote.knows(place) else None


class _Scan:
    """Reading of one file by all of DuckDB's threads, one request at a time.

    They read its row groups roughly in order. So the reader reads ahead, and a thread waits for
    blocks that another one is fetching.
    """

    def __init__(self, remote: RemoteFiles, path: str) -> None:
        self._remote = remote
        self._path = path
        self._reached = -1
        self._ahead = 0
        self._lock = threading.Lock()

    def fetch(self, start: int, stop: int) -> None:
        """Fetch bytes start <= i < stop, and more where a scan continues."""
        with self._lock:
            if self._reached < 0 or abs(start - self._reached) > _NEAR + self._ahead:
                self._ahead = 0
                self._reached = stop
            elif stop > self._reached:
                self._ahead = min(_AHEAD_MOST, max(_AHEAD_LEAST, 2 * self._ahead))
                self._reached = stop + self._ahead
            else:
                self._remote.fetch(self._path, [(start, stop)])
                return
            end = min(self._reached, self._remote.size(self._path))
            self._remote.fetch(self._path, [(start, end)])


class _File(RemoteFile):
    """A file for DuckDB, whose threads share one and each seek in it before they read.

    A failure is remembered, as DuckDB keeps only the text of an exception.
    """

    def __init__(self, remote: RemoteFiles, path: str, scan: _Scan) -> None:
        self._places = threading.local()
        super().__init__(remote, path)
        self._scan = scan

    @property
    def at(self) -> int:
        place: int = getattr(self._places, "at", 0)
        return place

    @at.setter
    def at(self, place: int) -> None:
        self._places.at = place

    def read(self, size: int | None = -1) -> bytes:
        stop = self.remote.size(self.path) if size is None or size < 0 else self.at + size
        try:
            self._scan.fetch(self.at, min(stop, self.remote.size(self.path)))
            return super().read(size)
        except FeatureDBError as error:
            self.remote.failure = error
            raise
