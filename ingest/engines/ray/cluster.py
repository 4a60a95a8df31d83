"""The engine of a Ray cluster: a crew for the partitions, tasks for merging buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from featuredb.errors import IngestError
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from ingest.compaction import Compaction, Merged, Place, merge_here
from ingest.engines.dispatch import TRIES, dispatch
from ingest.engines.ray.connection import connection
from ingest.engines.ray.crew import RayCrew, cause
from ingest.engines.ray.share import Share, share_of
from ingest.engines.worker import Job
from ingest.extract.partition import Report
from ingest.run_plan import Summary

_TASKS_PER_CPU = 4
"""Merging tasks for each core: enough to even out their lengths."""


@dataclass
class Cluster:
    """The engine of a Ray cluster; see `Workers`.

    address: of a running cluster; None for ``RAY_ADDRESS``, else a cluster of this machine, bound
    to loopback, that ends with the ingest. job_on: the job of a worker on a device. A process
    that is already connected to Ray stays so, and its cluster is used.
    """

    address: str | None
    workers: int | None
    gpus_per_worker: float
    wanted: str
    job_on: Callable[[str], Job]
    note: Callable[[str], None]
    _stack: ExitStack = field(default_factory=ExitStack)
    _ray: Any = None
    _share: Share = field(default_factory=lambda: Share(1, 1.0, 0.0))

    @property
    def device(self) -> str:
        """How many of what."""
        return f"{self._share.workers} x {self._kind}"

    @property
    def _kind(self) -> str:
        if self.wanted not in ("auto", "cuda"):
            return self.wanted
        return "cuda" if self._share.gpus else "cpu"

    def __enter__(self) -> Self:
        self._ray = self._stack.enter_context(connection(self.address))
        gpus = 0.0 if self.wanted == "cpu" else self.gpus_per_worker
        total = self._ray.cluster_resources()
        if self.wanted != "auto" and gpus and not total.get("GPU"):
            self._stack.close()
            raise IngestError(f"the Ray cluster has no GPU for --device {self.wanted}")
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        self._share = share_of(total, self.workers, gpus, largest or math.inf)
        count, cpus, gpus = self._share
        each = f"{gpus:g} GPUs" if gpus else f"{cpus:g} cores"
        self.note(f"Ray: {count} workers of {each}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, numbers: Sequence[int], report: Report) -> Iterator[Summary]:
        """Partitions as workers finish them."""
        crew = RayCrew(self._ray, self.job_on(self._kind), self._share)
        try:
            yield from dispatch(crew, numbers, self._share.workers, report, self.note)
        finally:
            crew.close()

    def merge(
        self, layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
    ) -> Iterator[Merged]:
        """Tasks of a few adjacent buckets each: opening the runs costs a task about as much as
        merging a small bucket."""
        ray = self._ray
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = max(1, len(places) // (_TASKS_PER_CPU * cpus))
        pieces = [places[at : at + size] for at in range(0, len(places), size)]
        task = ray.remote(_merge).options(num_cpus=1, max_retries=TRIES)
        told = ray.put((layout, draft, job, folder))
        waiting = [task.remote(told, piece) for piece in pieces]
        for done in waiting:
            try:
                merged: list[Merged] = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise cause(error) from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise IngestError(
                    f"merging {job.sae} killed {TRIES + 1} workers: give them more memory, "
                    "then run the same command again"
                ) from error
            yield from merged


def _merge(told: tuple[Layout, Draft, Compaction, Path], places: Sequence[Place]) -> list[Merged]:
    # Ray counts one core for a task.
    return list(merge_here(*told, places, threads=1))
