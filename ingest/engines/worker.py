"""One copy of the model and the SAEs in a separate process, running partitions of a plan."""

from __future__ import annotations

import os
import platform
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from featuredb.errors import FeatureDBError, IngestError, PlanMismatchError
from featuredb.store.layout import Layout
from featuredb.store.snapshot import WRITER
from ingest.attached import ModelWithSaes
from ingest.engines.dispatch import (
    Event,
    PartitionCollected,
    PartitionProgress,
    PartitionWritten,
    WorkerFailed,
    WorkerNote,
)
from ingest.extract.device import DeviceMemory
from ingest.extract.overlap import writers_beside
from ingest.extract.partition import Extractor, collect
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
    """Runs partitions of the plan, one by the model while others are written.

    Args:
        job: What to load and where.
        number: Its own, for what it sends.
        send: Called with what happens, in several threads.

    Raises:
        PlanMismatchError: If the model's files differ from those the plan was made with.
        IngestError: If the plan is missing or of another release, or loading fails.
    """

    def __init__(self, job: Job, number: int, send: Callable[[Event], None]) -> None:
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
        _use(device)
        model = load_model(
            job.model,
            device=job.device,
            dtype=job.dtype,
            revision=job.revision,
            torch_compile=plan.draft.model.compiled,
        )
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
            memory=DeviceMemory(plan.batch_tokens, lambda text: send(WorkerNote(text))),
            writer=uuid.uuid4().hex[:8],
        )
        self._number = number
        self._send = send
        self._given: deque[int] = deque()
        self._running: deque[int] = deque()
        self._collector = ThreadPoolExecutor(1, "collect", partial(_use, device))
        self._writers = Writers(self._extractor, writers_beside(device))
        self._room = threading.Semaphore(self._writers.partitions)

    @property
    def name(self) -> str:
        """Process id and host."""
        return f"worker {os.getpid()} on {platform.node()}"

    def collect(self, partition: int) -> None:
        """Run a partition in the background, behind those given before, and write it.

        It begins while the last batches of the one before come back, if it is given by then.
        """
        self._given.append(partition)
        self._collector.submit(self._collect)

    def _collect(self) -> None:
        """Run the partitions given by now, and those that are given meanwhile."""
        with failures(self._number, self._send):
            for collected in collect(self._extractor, self._next(), self._report):
                self._running.popleft()
                self._send(PartitionCollected(self._number, collected.number))
                self._room.acquire()
                self._writers.submit(collected).add_done_callback(self._written)
                del collected

    def _next(self) -> Iterator[int]:
        while self._given:
            self._running.append(self._given.popleft())
            yield self._running[-1]

    def _report(self, tokens: int, activations: int) -> None:
        self._send(PartitionProgress(self._number, self._running[0], tokens, activations))

    def _written(self, summary: Future[Summary]) -> None:
        self._room.release()
        with failures(self._number, self._send):
            self._send(PartitionWritten(self._number, summary.result()))


def _use(device: torch.device) -> None:
    """Make a GPU the one that the thread uses where none is named."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextmanager
def failures(worker: int, send: Callable[[Event], None]) -> Iterator[None]:
    """Sends the error that the block raises."""
    try:
        yield
    except ConnectionError:
        pass  # nobody listens any more: the driver has ended
    except FeatureDBError as error:
        send(WorkerFailed(worker, error, ""))
    except Exception:
        send(WorkerFailed(worker, None, traceback.format_exc()))
