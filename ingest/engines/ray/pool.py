"""A pool of workers on a Ray cluster, one actor per copy of the model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple

from featuredb.errors import FeatureDBError, IngestError
from ingest.engines.dispatch import Event, WorkerDied, WorkerNote, WorkerReady
from ingest.engines.worker import Job, Worker

START_S = 15 * 60.0
"""How long to wait for a first worker. A cluster that adds machines takes minutes."""

_NOTE_AFTER_S = 30.0
"""How long to wait before telling the user."""

_WAIT_S = 1.0
"""How long to wait for an event before looking whether a worker has started."""

_CPUS_PER_WORKER = 4
"""Of a worker without a GPU, unless the number of workers is given."""

_CPUS_PER_GPU = 6.0
"""Of a worker with a GPU, at most: one launches the model's work, the others sort and write."""


class Share(NamedTuple):
    """The number of workers, and what each requests of the cluster."""

    workers: int
    cpus: float
    gpus: float


def share_of(
    total: Mapping[str, float],
    workers: int | None,
    gpus: float,
    largest: float = math.inf,
    per_gpu: float = math.inf,
) -> Share:
    """Share out a cluster's resources.

    Args:
        total: Resources of the cluster, as Ray names them.
        workers: Number of workers, None for as many as fit.
        gpus: GPUs that each worker requests, if the cluster has any.
        largest: Cores of the largest node. A worker that requests more would never start.
        per_gpu: Cores for each GPU of the node that has fewest for it.
    """
    cpus = total.get("CPU", 1.0)
    if gpus and total.get("GPU"):
        count = workers or max(1, int(total["GPU"] / gpus))
        return Share(count, _cores(min(_CPUS_PER_GPU, cpus / count, per_gpu * gpus)), gpus)
    count = workers or max(1, int(cpus / min(_CPUS_PER_WORKER, largest)))
    return Share(count, _cores(min(cpus / count, largest)), 0.0)


def _cores(share: float) -> float:
    """Ray wants whole cores above one."""
    return float(int(share)) if share >= 1 else share


class _Call(NamedTuple):
    """A pending call of an actor's method."""

    worker: int
    method: str


class RayPool:
    """A `WorkerPool` of Ray actors."""

    def __init__(self, ray: Any, job: Job, share: Share) -> None:
        self._ray = ray
        self._job = job
        self._share = share
        self._actor = ray.remote(Actor).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            # `events` waits while others are called.
            max_concurrency=2,
            max_restarts=0,
        )
        self._actors: list[Any] = []
        self._alive: set[int] = set()
        self._started: set[int] = set()
        self._calls: dict[Any, _Call] = {}
        self._waiting_since = time.monotonic()
        self._noted = False

    def start_worker(self) -> int:
        worker = len(self._actors)
        self._actors.append(self._actor.remote())
        self._alive.add(worker)
        # `pid` returns as soon as the process runs. Loading a large model takes longer.
        self._call(worker, "pid")
        self._call(worker, "load", self._job, worker)
        return worker

    def pid(self, worker: int) -> int:
        """Process id of a worker."""
        number: int = self._ray.get(self._actors[worker].pid.remote())
        return number

    def collect(self, worker: int, partition: int) -> None:
        self._call(worker, "collect", partition)

    def events(self) -> Iterator[Event]:
        ray = self._ray
        yield from self._check_wait()
        finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=_WAIT_S)
        for reference in finished:
            call = self._calls.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise cause(error) from None
            except ray.exceptions.RayActorError as error:
                _check_start(error)
                yield WorkerDied(call.worker, self._reap(call.worker, error))
            else:
                yield from self._events_of(call, result)

    def close(self) -> None:
        """Kill every worker. Unfinished partitions are lost."""
        for worker in self._alive:
            self._ray.kill(self._actors[worker])

    def _check_wait(self) -> Iterator[Event]:
        """Note that no worker has started yet, or raise when that has taken too long."""
        now = time.monotonic()
        if self._started:
            self._waiting_since, self._noted = now, False
        waited = now - self._waiting_since
        if waited > START_S:
            raise IngestError(
                f"the Ray cluster started no worker in {START_S / 60:g} minutes "
                f"({self._request()}): "
                "`ray status` shows what it is busy with; then run the same command again"
            )
        if waited > _NOTE_AFTER_S and not self._noted:
            self._noted = True
            yield WorkerNote(f"Ray has started no worker yet ({self._request()}): waiting")

    def _request(self) -> str:
        """What each worker requests, and what is free."""
        kind, each = ("GPU", self._share.gpus) if self._share.gpus else ("CPU", self._share.cpus)
        free = self._ray.available_resources().get(kind, 0.0)
        total = self._ray.cluster_resources().get(kind, 0.0)
        unit = "GPUs" if kind == "GPU" else "cores"
        return f"each asks for {each:g} {unit}, {free:g} of {total:g} are free"

    def _call(self, worker: int, method: str, *arguments: Any) -> None:
        call = getattr(self._actors[worker], method).remote(*arguments)
        self._calls[call] = _Call(worker, method)

    def _events_of(self, call: _Call, result: Any) -> Iterator[Event]:
        match call.method:
            case "pid":
                self._started.add(call.worker)
            case "load":
                self._call(call.worker, "events")
                yield WorkerReady(call.worker, result)
            case "events":
                self._call(call.worker, "events")
                yield from result

    def _reap(self, worker: int, error: Exception) -> str:
        """Forget a worker and say how it ended."""
        self._alive.discard(worker)
        self._started.discard(worker)
        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        # It may be unreachable rather than dead, and must not continue.
        self._ray.kill(self._actors[worker])
        return f"is gone ({type(error).__name__})"


class Actor:
    """A `Worker` in a Ray actor, created empty so that errors of loading reach the driver."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._events: SimpleQueue[Event] = SimpleQueue()

    def load(self, job: Job, number: int) -> str:
        """Load the model and return the worker's name."""
        self._worker = Worker(job, number, self._events.put)
        return self._worker.name

    def pid(self) -> int:
        """Process id."""
        return os.getpid()

    def collect(self, partition: int) -> None:
        """See `Worker.collect`."""
        assert self._worker is not None
        self._worker.collect(partition)

    def events(self) -> list[Event]:
        """Wait for an event, and return all there are."""
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        return events


def _check_start(error: Exception) -> None:
    """Raise `IngestError` if a process started and could not become a worker."""
    lines = str(error).strip().splitlines()
    if lines and "in its creation task" in lines[0]:
        raise IngestError(
            f"Ray's workers cannot start ({lines[-1]}): install this release of featuredb on "
            "every node of the cluster"
        ) from error


def cause(error: Any) -> Exception:
    """A `FeatureDBError` that a worker raised, or else Ray's error with its traceback."""
    return error.cause if isinstance(error.cause, FeatureDBError) else error
