"""Workers of a Ray cluster: an actor for each copy of the model, tasks for merging buckets.

Ray itself is imported when a cluster is wanted, see `connection`.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from featuredb.errors import FeatureDBError, IngestError, MissingExtraError
from featuredb.layout import Layout
from featuredb.snapshot import Draft
from ingest.compact import Compaction, Merged, Place, merge_here
from ingest.engines.dispatch import (
    TRIES,
    Collected,
    Event,
    Gone,
    Noted,
    Progress,
    Ready,
    Written,
    dispatch,
)
from ingest.engines.worker import Job, Worker
from ingest.partition import Report
from ingest.plan import Summary

_CPUS_PER_WORKER = 4
"""Of a worker without a GPU, unless the number of workers says otherwise."""

_TASKS_PER_CPU = 4
"""Merging tasks for each core: enough to even out their lengths."""

_LOOK_EVERY_S = 1.0

START_S = 15 * 60.0
"""How long a cluster may leave us without any worker; one that adds machines takes minutes."""

_PATIENCE_S = 30.0
"""When the user is told that we wait."""

_ANSWER_S = 10.0
"""How long a cluster may take to accept a connection. Ray itself goes on trying for minutes."""

_LOCAL = "local"

_AUTO = "auto"

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

_LOOPBACK_ENVIRONMENT = {
    # Ray's own switch for staying on loopback; it has it for systems with firewall pop-ups. Else it
    # takes 127.0.0.1 for the machine's address in its network, to listen there and to connect to.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

_LOCAL_ENVIRONMENT = _LOOPBACK_ENVIRONMENT | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Share(NamedTuple):
    """How many workers, and what each of them asks of the cluster."""

    workers: int
    cpus: float
    gpus: float


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
                raise _cause(error) from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise IngestError(
                    f"merging {job.sae} killed {TRIES + 1} workers: give them more memory, "
                    "then run the same command again"
                ) from error
            yield from merged


@contextmanager
def connection(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected for as long as the block runs.

    Raises `MissingExtraError`, and `IngestError` where no cluster answers.
    """
    where = _where(address)
    with _environment(_variables(where)):
        try:
            ray = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "--engine ray needs ray, which is not installed: pip install 'featuredb[ray]'"
            ) from error
        if ray.is_initialized():
            yield ray
            return
        _heed_the_switch()
        _check_answer(ray, where)
        # Only our own lines are shown: workers tell the driver what matters.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            with warnings.catch_warnings():
                # Ray forks to start its processes, which run other programs at once.
                warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)
                ray.init(address=where, **quiet, **(alone if where == _LOCAL else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            if "AuthenticationError" in str(error.__cause__):
                raise IngestError(
                    f"the Ray cluster at {where} wants a token: set RAY_AUTH_MODE=token, and "
                    "RAY_AUTH_TOKEN unless it is in ~/.ray/auth_token"
                ) from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise IngestError(
                f"no Ray cluster at {where} ({lines[0].rstrip('.')}): check --ray-address"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _heed_the_switch() -> None:
    """Ray reads its switch for loopback once, when it is imported, which another may have done."""
    constants = vars(importlib.import_module("ray._private.ray_constants"))
    switch = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    if switch is not None and "ENABLE_RAY_CLUSTER" in constants:
        constants["ENABLE_RAY_CLUSTER"] = switch.lower() in ("1", "true")


def _where(address: str | None) -> str:
    """What `address` comes to: host and port, ``local``, or what only Ray understands."""
    named = os.environ.get("RAY_ADDRESS")
    where = address or named or _LOCAL
    if where != _AUTO:
        return where
    if named and named != _AUTO:
        return named
    try:
        # `ray start` writes it down. Ray cannot be asked: the answer decides how to import it.
        folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
        return (folder / "ray" / "ray_current_cluster").read_text().strip() or where
    except OSError:
        return where


def _endpoint(where: str) -> tuple[str, int] | None:
    host, _, port = where.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def _variables(where: str) -> dict[str, str]:
    """The environment in which Ray reaches this cluster."""
    if where == _LOCAL:
        return _LOCAL_ENVIRONMENT
    endpoint = _endpoint(where)
    if endpoint and endpoint[0] in _LOOPBACK_HOSTS and not _silence(*endpoint):
        return _LOOPBACK_ENVIRONMENT
    return {}


def _silence(host: str, port: int) -> str | None:
    """Why nothing answers there; None if something does."""
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _check_answer(ray: Any, where: str) -> None:
    endpoint = _endpoint(where)
    if endpoint is None:
        return
    host, port = endpoint
    if host in _LOOPBACK_HOSTS:
        # Where Ray will go instead, unless the environment kept it from it.
        host = ray.util.get_node_ip_address()
    why = _silence(host, port)
    if why:
        seen = "" if host == endpoint[0] else f" at {host}"
        raise IngestError(f"no Ray cluster at {where} ({why}{seen}): check --ray-address")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def share_of(
    total: Mapping[str, float], workers: int | None, gpus: float, largest: float = math.inf
) -> Share:
    """How a cluster of these resources is shared out.

    gpus: asked for by each worker, if any. largest: cores of the node that has most of them, since
    a worker that asks for more than any node has would never start.
    """
    cpus = total.get("CPU", 1.0)
    if gpus and total.get("GPU"):
        count = workers or max(1, int(total["GPU"] / gpus))
        return Share(count, min(1.0, cpus / count), gpus)
    count = workers or max(1, int(cpus / min(_CPUS_PER_WORKER, largest)))
    each = min(cpus / count, largest)
    return Share(count, float(int(each)) if each >= 1 else each, 0.0)


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
                raise _cause(error) from None
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


def _merge(told: tuple[Layout, Draft, Compaction, Path], places: Sequence[Place]) -> list[Merged]:
    # Ray counts one core for a task.
    return list(merge_here(*told, places, threads=1))


def _check_start(error: Exception) -> None:
    """Raise `IngestError` if a worker's process came up and could not become a worker."""
    lines = str(error).strip().splitlines()
    if lines and "in its creation task" in lines[0]:
        raise IngestError(
            f"Ray's workers cannot start ({lines[-1]}): install this release of featuredb on "
            "every node of the cluster"
        ) from error


def _cause(error: Any) -> Exception:
    """What a worker raised: meant for the user, or else with Ray's account of where."""
    cause = error.cause
    stopped: Exception = cause if isinstance(cause, FeatureDBError) else error
    return stopped
