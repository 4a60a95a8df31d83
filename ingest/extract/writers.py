"""A pool of threads that sort and write segments, several SAEs and partitions at a time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from featuredb.store.snapshot import Segment
from ingest.extract.overlap import MOST_WRITING
from ingest.extract.partition import Collected, Extractor, finish, write_segment
from ingest.run_plan import Summary


class Writers:
    """Writes collected partitions in the background. Sorting and Parquet release the GIL.

    threads: segments written at once. Leaving the block waits for them.
    """

    def __init__(self, extractor: Extractor, threads: int) -> None:
        self._extractor = extractor
        self._pool = ThreadPoolExecutor(threads, "write")
        self.partitions = min(threads, MOST_WRITING)
        """How many partitions may be waiting or written at once within the ingest's memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)

    def submit(self, collected: Collected) -> Future[Summary]:
        """Write every segment of a partition and mark it done. The future gives its summary."""
        return _Writing(self._extractor, collected).begin(self._pool)


class _Writing:
    """A partition of which some segments are written."""

    def __init__(self, extractor: Extractor, collected: Collected) -> None:
        self._extractor = extractor
        self._collected = collected
        self._segments: dict[int, Segment] = {}
        self._lock = threading.Lock()
        self._done: Future[Summary] = Future()

    def begin(self, pool: ThreadPoolExecutor) -> Future[Summary]:
        for sae in range(len(self._extractor.saes)):
            pool.submit(self._write, sae)
        return self._done

    def _write(self, sae: int) -> None:
        """Whoever writes the last segment marks the partition. The first error is given."""
        try:
            segment = write_segment(self._extractor, self._collected, sae)
            with self._lock:
                self._segments[sae] = segment
                if len(self._segments) < len(self._extractor.saes):
                    return
            segments = [self._segments[number] for number in range(len(self._segments))]
            self._done.set_result(finish(self._extractor, self._collected, segments))
        except BaseException as error:
            with self._lock:
                if not self._done.done():
                    self._done.set_exception(error)
