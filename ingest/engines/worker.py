"""One copy of the model and the SAEs in a separate process, running partitions of a plan."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from featuredb.errors import IngestError, PlanMismatchError
from featuredb.store.layout import Layout
from featuredb.store.snapshot import WRITER
from ingest.attached import ModelWithSaes
from ingest.extract.device import DeviceMemory
from ingest.extract.overlap import writers_beside
from ingest.extract.partition import Collected, Extractor, Report, collect
from ingest.extract.recorded import recorded_saes
from ingest.extract.writers import Writers
from ingest.inputs import absolute
from ingest.model.load import load_model
from ingest.options import IngestOptions
from ingest.run_plan import RunPlan, Summary, differences, read_plan


class Job(NamedTuple):
    """What a worker is started with. It reads everything else from the plan on disk.

    model: a hub name or an absolute path. revision: of the model, if it is from the hub. dtype: the
    plan's, whatever this machine would choose. threads: CPU threads, None for torch's own choice.
    """

    root: Path
    model: str
    revision: str | None
    device: str
    dtype: str
    threads: int | None
    version: str = WRITER


def job_of(
    layout: Layout, plan: RunPlan, options: IngestOptions, device: str, threads: int | None
) -> Job:
    """The job of a worker on `device`."""
    model = plan.draft.model
    return Job(
        root=layout.root,
        model=absolute(options.model),
        revision=model.revision,
        device=device,
        dtype=model.dtype,
        threads=threads,
    )


class Worker:
    """Runs partitions of the plan. `collect` holds one in memory until `write` stores it.

    The two may run in two threads for two partitions.

    Args:
        job: What to load and where.
        note: Called with messages for the user.

    Raises:
        PlanMismatchError: If the model's files differ from those the plan was made with.
        IngestError: If the plan is missing or of another release, or loading fails.
    """

    def __init__(self, job: Job, note: Callable[[str], None]) -> None:
        if job.version != WRITER:
            raise IngestError(
                f"{self.name} has featuredb {WRITER}, the ingest was started by "
                f"{job.version}: install the same everywhere"
            )
        layout = Layout(job.root)
        plan = read_plan(layout)
        if plan is None:
            raise IngestError(
                f"{self.name} finds no plan in {layout.root}: "
                "the database's folder must be on a file system that every worker shares"
            )
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        device = torch.device(job.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        model = load_model(job.model, device=job.device, dtype=job.dtype, revision=job.revision)
        loaded = ModelWithSaes(model, recorded_saes(model, layout.root, plan.draft, plan.saes))
        actual = loaded.identity()
        planned = {name: plan.identity.get(name, "unset") for name in actual}
        if changed := differences(planned, actual):
            raise PlanMismatchError(
                f"{self.name} has other files than the ingest was planned with "
                f"({'; '.join(changed)}): give every worker the same model"
            )
        # A worker assumed dead may still be writing when another repeats its partition, so each
        # worker's runs have their own names.
        self._extractor = replace(
            Extractor.of(layout, plan, loaded),
            memory=DeviceMemory(plan.batch_tokens, note),
            writer=uuid.uuid4().hex[:8],
        )
        self._collected: dict[int, Collected] = {}
        self._writers = Writers(self._extractor, writers_beside(device))

    @property
    def name(self) -> str:
        """Process id and host."""
        return f"worker {os.getpid()} on {platform.node()}"

    def collect(self, partition: int, report: Report) -> None:
        """Run the model and the SAEs over a partition."""
        (self._collected[partition],) = collect(self._extractor, [partition], report)

    def write(self, partition: int) -> Summary:
        """Write a collected partition and mark it done."""
        return self._writers.submit(self._collected.pop(partition)).result()
