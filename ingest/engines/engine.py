"""The interface of an execution backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from ingest.compaction import Compaction, Merged, Place
from ingest.extract.partition import Report
from ingest.run_plan import Summary


class Engine(Protocol):
    """An execution backend with available workers."""

    @property
    def device(self) -> str:
        """What the model runs on, for the ingest record."""

    def run(self, partitions: Sequence[int], report: Report) -> Iterator[Summary]:
        """Run partitions of the plan in any order and yield their summaries as they finish.

        Raises the `FeatureDBError` that stopped a worker.
        """

    def merge(
        self, layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
    ) -> Iterable[Merged]:
        """An `ingest.compaction.Merge`."""
