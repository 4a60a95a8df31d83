"""Run partitions in this process, in order, writing some while the next runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ingest.compaction import merge_here
from ingest.extract.overlap import writers_beside
from ingest.extract.partition import Extractor, Report, collect
from ingest.extract.writers import Writers
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
        """Run partitions in order. In memory are one that runs and those being written."""
        with Writers(self.extractor, writers_beside(self.extractor.model.device)) as writers:
            writing: deque[Future[Summary]] = deque()
            for collected in collect(self.extractor, partitions, report):
                if len(writing) == writers.partitions:
                    yield writing.popleft().result()
                writing.append(writers.submit(collected))
                del collected
            while writing:
                yield writing.popleft().result()
