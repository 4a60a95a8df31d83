"""Run partitions in this process, in order, writing one while the next runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ingest.compaction import merge_here
from ingest.extract.partition import Extractor, Report, collect, write
from ingest.run_plan import Summary


@dataclass(frozen=True)
class LocalEngine:
    """Backend of a single process. See `Engine`."""

    extractor: Extractor
    merge = staticmethod(merge_here)

    @property
    def device(self) -> str:
        return str(self.extractor.model.device)

    def run(self, partitions: Sequence[int], report: Report) -> Iterator[Summary]:
        """Run partitions in order. Two are in memory: one running, one being written."""
        with ThreadPoolExecutor(1, "write") as writer:
            writing: Future[Summary] | None = None
            for partition in partitions:
                collected = collect(self.extractor, partition, report)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, self.extractor, collected)
            if writing is not None:
                yield writing.result()
