"""Select the execution backend that the options name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from featuredb.store.layout import Layout
from ingest.attached import ModelWithSaes
from ingest.engines.engine import Engine
from ingest.engines.local import LocalEngine
from ingest.engines.processes import ProcessEngine
from ingest.engines.ray.engine import ray_engine
from ingest.engines.worker import job_of
from ingest.extract.partition import Extractor
from ingest.options import IngestOptions
from ingest.run_plan import RunPlan

_CPUS_PER_PROCESS = 4


def engine_for(
    layout: Layout, plan: RunPlan, loaded: ModelWithSaes, options: IngestOptions
) -> AbstractContextManager[Engine]:
    """Return the backend that `options.engine` names. Only the local one keeps `loaded` alive."""
    if options.engine == "local":
        return nullcontext(LocalEngine(Extractor.of(layout, plan, loaded)))
    if options.engine == "ray":
        return ray_engine(
            address=options.ray_address,
            workers=options.workers,
            gpus_per_worker=options.gpus_per_worker,
            device=options.device.partition(":")[0],
            job_on=lambda device: job_of(layout, plan, options, device, None),
        )
    devices = _devices(loaded.model.device)
    count, threads = _processes(devices, options.workers)
    jobs = [job_of(layout, plan, options, devices[i % len(devices)], threads) for i in range(count)]
    return nullcontext(ProcessEngine(jobs))


def _devices(chosen: torch.device) -> list[str]:
    """Every GPU of this machine, unless one was named."""
    if str(chosen) == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(chosen)]


def _processes(devices: Sequence[str], workers: int | None) -> tuple[int, int | None]:
    """The number of processes and the CPU threads of each, None for torch's own choice."""
    if devices[0] != "cpu":
        return workers or len(devices), None
    cores = os.cpu_count() or 1
    count = workers or max(1, cores // _CPUS_PER_PROCESS)
    return count, max(1, cores // count)
