"""Several processes of one machine, one for each of its GPUs, without a cluster."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Self

from featuredb.errors import FeatureDBError
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from ingest.compaction import Compaction, Merged, Place, merge_here
from ingest.engines.dispatch import (
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
from ingest.extract.partition import Report
from ingest.run_plan import Summary


class _Order(NamedTuple):
    """What the driver sends to a worker."""

    kind: str
    """``collect`` or ``write``."""
    partition: int


class _Failed(NamedTuple):
    """What stopped a worker: an error meant for the user, else None and a traceback."""

    error: FeatureDBError | None
    trace: str


@dataclass(frozen=True)
class Processes:
    """The engine of one machine's processes; see `Workers`. jobs: one for each worker."""

    jobs: Sequence[Job]
    note: Callable[[str], None]

    @property
    def device(self) -> str:
        """How many of what."""
        return f"{len(self.jobs)} x {self.jobs[0].device.partition(':')[0]}"

    def run(self, numbers: Sequence[int], report: Report) -> Iterator[Summary]:
        """Partitions as workers finish them."""
        if not numbers:
            return
        self.note(f"starting {len(self.jobs)} processes on {self.jobs[0].device.partition(':')[0]}")
        crew = ProcessCrew(self.jobs)
        try:
            yield from dispatch(crew, numbers, len(self.jobs), report, self.note)
        finally:
            crew.close()

    def merge(
        self, layout: Layout, draft: Draft, job: Compaction, folder: Path, places: Sequence[Place]
    ) -> Iterator[Merged]:
        """One bucket after the other, in this process."""
        return merge_here(layout, draft, job, folder, places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ProcessCrew:
    """Workers in processes of their own, each at the other end of a pipe; see `Crew`."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        # A fork would share the driver's threads and its grip on the GPU.
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection[_Order, Any]] = {}
        self._slots: dict[int, int] = {}
        self._hired = 0

    def pid(self, worker: int) -> int | None:
        """Of a worker's process."""
        return self._processes[worker].pid

    def hire(self) -> int:
        """A worker with the job of the one whose place it takes."""
        worker = self._hired
        self._hired += 1
        taken = self._slots.values()
        self._slots[worker] = next(i for i in range(len(self._jobs)) if i not in taken)
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(self._jobs[self._slots[worker]], worker, theirs),
            daemon=True,
            name=f"featuredb worker {worker}",
        )
        process.start()
        theirs.close()
        self._processes[worker], self._pipes[worker] = process, mine
        return worker

    def collect(self, worker: int, partition: int) -> None:
        self._send(worker, _Order("collect", partition))

    def write(self, worker: int, partition: int) -> None:
        self._send(worker, _Order("write", partition))

    def events(self) -> Iterator[Event]:
        ready = wait(self._pipes.values())
        for worker in [w for w, pipe in self._pipes.items() if pipe in ready]:
            try:
                event = self._pipes[worker].recv()
            except (EOFError, OSError):
                yield Gone(worker, self._bury(worker))
                continue
            if isinstance(event, _Failed):
                raise event.error or RuntimeError(f"a worker failed:\n{event.trace}")
            yield event

    def close(self) -> None:
        """End every worker; what they have not finished is lost."""
        for process in self._processes.values():
            process.kill()
        for worker in list(self._processes):
            self._bury(worker)

    def _send(self, worker: int, order: _Order) -> None:
        # A worker that has just died is noticed by `events`, and its partition handed on.
        with suppress(OSError):
            self._pipes[worker].send(order)

    def _bury(self, worker: int) -> str:
        process = self._processes.pop(worker)
        self._pipes.pop(worker).close()
        self._slots.pop(worker)
        process.join()
        code = process.exitcode or 0
        process.close()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _work(job: Job, number: int, pipe: Connection[Any, _Order]) -> None:
    """The life of a worker's process: until the driver closes the pipe, or dies."""
    # Ctrl-C reaches the whole group of processes; the driver is the one that answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def send(event: Event | _Failed) -> None:
        with lock:
            pipe.send(event)

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            # The pipe itself: nobody is left to be told.
            if not isinstance(error, BrokenPipeError | ConnectionResetError):
                send(_Failed(None, traceback.format_exc()))
        except FeatureDBError as error:
            send(_Failed(error, ""))
        except Exception:
            send(_Failed(None, traceback.format_exc()))

    def live() -> None:
        worker = Worker(job, lambda text: send(Noted(text)))
        send(Ready(number, worker.name))
        with ThreadPoolExecutor(1, "write") as writer:
            while True:
                try:
                    order = pipe.recv()
                except EOFError:
                    return
                if order.kind == "write":
                    writer.submit(guarded, partial(store, worker, order.partition))
                else:
                    gather(worker, order.partition)

    def gather(worker: Worker, partition: int) -> None:
        done = [0, 0]

        def report(tokens: int, activations: int) -> None:
            done[0] += tokens
            done[1] += activations
            send(Progress(number, partition, done[0], done[1]))

        worker.collect(partition, report)
        send(Collected(number, partition))

    def store(worker: Worker, partition: int) -> None:
        send(Written(number, worker.write(partition)))

    guarded(live)
