"""Run partitions on the actors of a Ray cluster, and merge buckets in its tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featuredb.errors import IngestError
from featuredb.render.progress import log
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from ingest.compaction import Compaction, Merged, Place, merge_here
from ingest.engines.dispatch import TRIES, dispatch
from ingest.engines.ray.connection import connection
from ingest.engines.ray.pool import RayPool, Share, cause, share_of
from ingest.engines.worker import Job
from ingest.extract.partition import Report
from ingest.run_plan import Summary

_TASKS_PER_CPU = 4
"""Merge tasks per core, so that uneven tasks even out."""


@dataclass(frozen=True)
class RayEngine:
    """Backend of a Ray cluster. See `Engine`.

    ray: the connected module. job: of every worker. device: as in "2 x cuda".
    """

    ray: Any
    job: Job
    share: Share
    device: str

    def run(self, partitions: Sequence[int], report: Report) -> Iterator[Summary]:
        """Run partitions and yield their summaries as they finish."""
        pool = RayPool(self.ray, self.job, self.share)
        try:
            yield from dispatch(pool, partitions, self.share.workers, report)
        finally:
            pool.close()

    def merge(
        self, layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
    ) -> Iterator[Merged]:
        """Merge a few adjacent buckets per task: opening the runs takes a task about as long as
        merging a small bucket."""
        ray = self.ray
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = max(1, len(places) // (_TASKS_PER_CPU * cpus))
        task = ray.remote(_merge).options(num_cpus=1, max_retries=TRIES)
        common = ray.put((layout, draft, job, folder))
        results = [
            task.remote(common, places[at : at + size]) for at in range(0, len(places), size)
        ]
        for result in results:
            try:
                merged: list[Merged] = ray.get(result)
            except ray.exceptions.RayTaskError as error:
                raise cause(error) from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise IngestError(
                    f"merging {job.sae} killed {TRIES + 1} workers: give them more memory, "
                    "then run the same command again"
                ) from error
            yield from merged


@contextmanager
def ray_engine(
    *,
    address: str | None,
    workers: int | None,
    gpus_per_worker: float,
    device: str,
    job_on: Callable[[str], Job],
) -> Iterator[RayEngine]:
    """Connect to a Ray cluster for the duration of the block.

    A process that is already connected to Ray stays connected, and its cluster is used.

    Args:
        address: Of a running cluster. None for ``RAY_ADDRESS``, else a cluster of this machine,
            bound to loopback, that ends with the block.
        workers: Number of workers, None for as many as the cluster has room for.
        gpus_per_worker: Of a worker, if the cluster has GPUs.
        device: ``auto``, ``cpu`` or ``cuda``.
        job_on: Returns the job of a worker on a device.

    Raises:
        IngestError: If no cluster answers, or it has no GPU for ``cuda``.
        MissingExtraError: If Ray is not installed.
    """
    with connection(address) as ray:
        gpus = 0.0 if device == "cpu" else gpus_per_worker
        total = ray.cluster_resources()
        if device != "auto" and gpus and not total.get("GPU"):
            raise IngestError(f"the Ray cluster has no GPU for --device {device}")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        beside = [node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU")]
        share = share_of(
            total, workers, gpus, largest or math.inf, min(beside, default=0.0) or math.inf
        )
        each = f"{share.gpus:g} GPUs" if share.gpus else f"{share.cpus:g} cores"
        log.info(f"Ray: {share.workers} workers of {each}")
        if device in ("auto", "cuda"):
            device = "cuda" if share.gpus else "cpu"
        yield RayEngine(ray, job_on(device), share, f"{share.workers} x {device}")


def _merge(common: tuple[Layout, Draft, Compaction, Path], places: Sequence[Place]) -> list[Merged]:
    # Ray counts one core for a task.
    return list(merge_here(*common, places, threads=1))
