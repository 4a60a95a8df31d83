"""Files copied one by one or several at once, counted and reported while they arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from featuredb.store.snapshot import File

_AT_ONCE = 8
"""Files under way at the same time."""

Report = Callable[[int, int], None]
"""Called with (bytes done, bytes to copy)."""


class Copying:
    """Copies files, several at once, and counts."""

    def __init__(self, copy: Callable[[File], int], report: Report | None) -> None:
        """copy: copies one file and says how many bytes it was."""
        self.files = 0
        self.bytes = 0
        self._copy = copy
        self._report = report
        self._total = 0
        self._lock = threading.Lock()

    def expect(self, files: Iterable[File]) -> None:
        """Say how much there is to copy."""
        self._total = sum(file.bytes for file in files)
        self._tell()

    def all(self, files: Sequence[File]) -> None:
        """In any order. The first failure stops what has not begun, and is raised."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            under_way = [threads.submit(self._one, file) for file in files]
            try:
                for done in under_way:
                    done.result()
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def each(self, files: Sequence[File]) -> None:
        """One after the other."""
        for file in files:
            self._one(file)

    def _one(self, file: File) -> None:
        size = self._copy(file)
        with self._lock:
            self.files += 1
            self.bytes += size
            self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self.bytes, self._total)
