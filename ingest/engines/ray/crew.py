"""A crew on a Ray cluster: an actor for each copy of the model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from featuredb.errors import FeatureDBError, IngestError
from ingest.engines.dispatch import Collected, Event, Gone, Noted, Progress, Ready, Written
from ingest.engines.ray.share import Share
from ingest.engines.worker import Job, Worker
from ingest.run_plan import Summary

_LOOK_EVERY_S = 1.0

START_S = 15 * 60.0
"""How long a cluster may leave us without any worker; one that adds machines takes minutes."""

_PATIENCE_S = 30.0
"""When the user is told that we wait."""


class RayCrew:
    """Workers in actors; see `Crew`."""

    def __init__(self, ray: Any, job: Job, share: Share) -> None:
        self._ray = ray
        self._job = job
        self._share = share
        self._actor = ray.remote(Actor).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            # One method collects, one writes, one says how far they are.
            max_concurrency=3,
            max_restarts=0,
        )
        self._actors: list[Any] = []
        self._alive: set[int] = set()
        self._ready: set[int] = set()
        self._started: set[int] = set()
        self._calls: dict[Any, _Call] = {}
        self._looked = 0.0
        self._lonely_since = time.monotonic()
        self._patient = False

    def hire(self) -> int:
        worker = len(self._actors)
        actor = self._actor.remote()
        self._actors.append(actor)
        self._alive.add(worker)
        # Answered as soon as there is a process, which loading a large model may long occupy.
        self._calls[actor.pid.remote()] = _Call(worker, "start")
        self._calls[actor.load.remote(self._job)] = _Call(worker, "load")
        return worker

    def pid(self, worker: int) -> int:
        """Of a worker's process."""
        number: int = self._ray.get(self._actors[worker].pid.remote())
        return number

    def collect(self, worker: int, partition: int) -> None:
        call = self._actors[worker].collect.remote(partition)
        self._calls[call] = _Call(worker, "collect", partition)

    def write(self, worker: int, partition: int) -> None:
        call = self._actors[worker].write.remote(partition)
        self._calls[call] = _Call(worker, "write", partition)

    def events(self) -> Iterator[Event]:
        ray = self._ray
        yield from self._wait()
        self._look()
        finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=_LOOK_EVERY_S)
        for done in finished:
            call = self._calls.pop(done)
            try:
                answer = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise cause(error) from None
            except ray.exceptions.RayActorError as error:
                _check_start(error)
                yield Gone(call.worker, self._bury(call.worker, error))
            else:
                yield from self._told(call, answer)

    def close(self) -> None:
        """End every worker; what they have not finished is lost."""
        for worker in self._alive:
            self._ray.kill(self._actors[worker])

    def _wait(self) -> Iterator[Event]:
        """Say that we wait for a first worker, and give up when that has taken too long."""
        now = time.monotonic()
        if self._started:
            self._lonely_since, self._patient = now, False
        lonely = now - self._lonely_since
        if lonely > START_S:
            raise IngestError(
                f"the Ray cluster started no worker in {START_S / 60:g} minutes ({self._wish()}): "
                "`ray status` shows what it is busy with; then run the same command again"
            )
        if lonely > _PATIENCE_S and not self._patient:
            self._patient = True
            yield Noted(f"Ray has started no worker yet ({self._wish()}): waiting")

    def _wish(self) -> str:
        """What each worker asks for, and what there is."""
        kind, each = ("GPU", self._share.gpus) if self._share.gpus else ("CPU", self._share.cpus)
        free = self._ray.available_resources().get(kind, 0.0)
        total = self._ray.cluster_resources().get(kind, 0.0)
        unit = "GPUs" if kind == "GPU" else "cores"
        return f"each asks for {each:g} {unit}, {free:g} of {total:g} are free"

    def _look(self) -> None:
        """Ask every worker how far it is, unless that was just done."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        asked = {call.worker for call in self._calls.values() if call.kind == "look"}
        for worker in self._ready - asked:
            self._calls[self._actors[worker].look.remote()] = _Call(worker, "look")

    def _told(self, call: _Call, answer: Any) -> Iterator[Event]:
        match call.kind:
            case "start":
                self._started.add(call.worker)
            case "load":
                self._ready.add(call.worker)
                yield Ready(call.worker, answer)
            case "collect":
                yield Collected(call.worker, call.partition)
            case "write":
                yield Written(call.worker, answer)
            case "look":
                progress, notes = answer
                yield from (Progress(call.worker, *each) for each in progress)
                yield from map(Noted, notes)

    def _bury(self, worker: int, error: Exception) -> str:
        self._alive.discard(worker)
        self._ready.discard(worker)
        self._started.discard(worker)
        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        # One that is out of reach rather than dead must not go on.
        self._ray.kill(self._actors[worker])
        return f"is gone ({type(error).__name__})"


class _Call(NamedTuple):
    """A call of a worker's method that has not been answered."""

    worker: int
    kind: str
    partition: int = -1


class Actor:
    """A `Worker` as Ray keeps it: made empty, so that what loading raises reaches the driver."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._progress: dict[int, tuple[int, int]] = {}
        self._notes: list[str] = []

    def load(self, job: Job) -> str:
        """Load the model; gives the worker's name."""
        self._worker = Worker(job, self._notes.append)
        return self._worker.name

    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    def collect(self, partition: int) -> None:
        """See `Worker.collect`."""

        def report(tokens: int, activations: int) -> None:
            before = self._progress.get(partition, (0, 0))
            self._progress[partition] = before[0] + tokens, before[1] + activations

        assert self._worker is not None
        self._progress.pop(partition, None)
        self._worker.collect(partition, report)

    def write(self, partition: int) -> Summary:
        """See `Worker.write`."""
        assert self._worker is not None
        summary = self._worker.write(partition)
        self._progress.pop(partition, None)
        return summary

    def look(self) -> tuple[list[tuple[int, int, int]], list[str]]:
        """(partition, tokens, activations) of what is being done; and what was noted since."""
        notes, self._notes[:] = list(self._notes), []
        return [(n, *done) for n, done in list(self._progress.items())], notes


def _check_start(error: Exception) -> None:
    """Raise `IngestError` if a worker's process came up and could not become a worker."""
    lines = str(error).strip().splitlines()
    if lines and "in its creation task" in lines[0]:
        raise IngestError(
            f"Ray's workers cannot start ({lines[-1]}): install this release of featuredb on "
            "every node of the cluster"
        ) from error


def cause(error: Any) -> Exception:
    """What a worker raised: meant for the user, or else with Ray's account of where."""
    stopped: Exception = error.cause if isinstance(error.cause, FeatureDBError) else error
    return stopped
