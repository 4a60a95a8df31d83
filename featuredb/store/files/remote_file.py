"""A file of a remote database as Python's and Arrow's readers take one."""

from __future__ import annotations

import io

from featuredb.store.files.remote import Remote


class RemoteFile(io.RawIOBase):
    """One file of a `Remote`, as a Python file. at: the place in it."""

    at: int

    def __init__(self, remote: Remote, path: str) -> None:
        self.remote = remote
        self.path = path
        self._size = remote.size(path)
        self.at = 0

    def read(self, size: int | None = -1) -> bytes:
        """As of any file. Raises as `Remote.fetch`."""
        stop = self._size if size is None or size < 0 else self.at + size
        data = self.remote.read(self.path, self.at, stop)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self._size}[whence]
        self.at = max(0, base + offset)
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
