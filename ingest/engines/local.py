"""This process: partitions in order, one written while the next one runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from ingest.compaction import Compaction, Merged, Place, merge_here
from ingest.extract.partition import Engine, Report, collect, write
from ingest.run_plan import Summary


@dataclass(frozen=True)
class Local:
    """The engine of one process; see `Workers`."""

    engine: Engine

    @property
    def device(self) -> str:
        """The model's own."""
        return str(self.engine.model.device)

    def run(self, numbers: Sequence[int], report: Report) -> Iterator[Summary]:
        """In order. Two partitions are in memory at once: the one that runs, the one written."""
        with ThreadPoolExecutor(1, "write") as writer:
            writing: Future[Summary] | None = None
            for number in numbers:
                collected = collect(self.engine, number, report)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, self.engine, collected)
            if writing is not None:
                yield writing.result()

    def merge(
        self, layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
    ) -> Iterator[Merged]:
        """One bucket after the other."""
        return merge_here(layout, draft, job, folder, places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
