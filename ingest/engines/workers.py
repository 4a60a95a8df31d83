"""What the pipeline asks of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from ingest.compaction import Compaction, Merged, Place
from ingest.extract.partition import Report
from ingest.run_plan import Summary


class Workers(Protocol):
    """Those who do the work, from entering this context manager until leaving it."""

    @property
    def device(self) -> str:
        """What the model runs on, for the record."""

    def run(self, numbers: Sequence[int], report: Report) -> Iterator[Summary]:
        """Run these partitions of the plan, in any order; their summaries as they are done.

        Raises the `FeatureDBError` of whatever went wrong in a worker.
        """

    def merge(
        self, layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
    ) -> Iterable[Merged]:
        """An `ingest.compaction.DraftMerge`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
