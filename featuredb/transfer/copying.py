"""Copy files in sequence or in parallel, with progress reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from featuredb.store.snapshot import File

_AT_ONCE = 8
"""Number of files copied in parallel."""

Report = Callable[[int, int], None]
"""Progress callback, called with (bytes copied, bytes to copy)."""


class Copying:
    """Copies files and counts files and bytes."""

    def __init__(self, copy: Callable[[File], int], report: Report | None) -> None:
        """copy: copies one file and returns its size in bytes."""
        self.files = 0
        self.bytes = 0
        self._copy = copy
        self._report = report
        self._total = 0
        self._lock = threading.Lock()

    def expect(self, files: Iterable[File]) -> None:
        """Set the total to copy."""
        self._total = sum(file.bytes for file in files)
        self._notify()

    def all(self, files: Sequence[File]) -> None:
        """Copy in parallel, in any order. Raise the first failure and cancel pending copies."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            futures = [threads.submit(self._one, file) for file in files]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def each(self, files: Sequence[File]) -> None:
        """Copy in sequence."""
        for file in files:
            self._one(file)

    def _one(self, file: File) -> None:
        size = self._copy(file)
        with self._lock:
            self.files += 1
            self.bytes += size
            self._notify()

    def _notify(self) -> None:
        if self._report is not None:
            self._report(self.bytes, self._total)
