"""Run partitions in several processes of one machine, one per GPU by default."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from featuredb.render.progress import log
from ingest.compaction import merge_here
from ingest.engines.dispatch import Event, WorkerDied, WorkerReady, dispatch
from ingest.engines.worker import Job, Worker, failures
from ingest.extract.partition import Report
from ingest.run_plan import Summary


@dataclass(frozen=True)
class ProcessEngine:
    """Backend of several processes. See `Engine`. jobs: one per worker."""

    jobs: Sequence[Job]
    merge = staticmethod(merge_here)

    @property
    def device(self) -> str:
        return f"{len(self.jobs)} x {self._kind}"

    @property
    def _kind(self) -> str:
        return self.jobs[0].device.partition(":")[0]

    def run(self, partitions: Sequence[int], report: Report) -> Iterator[Summary]:
        """Run partitions and yield their summaries as they finish."""
        if not partitions:
            return
        log.info(f"starting {len(self.jobs)} processes on {self._kind}")
        pool = ProcessPool(self.jobs)
        try:
            yield from dispatch(pool, partitions, len(self.jobs), report)
        finally:
            pool.close()


class ProcessPool:
    """A `WorkerPool` of processes, each at the other end of a pipe."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        # A fork would share the driver's threads and its CUDA context.
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection[int, Event]] = {}
        self._slots: dict[int, int] = {}
        self._workers_started = 0

    def pid(self, worker: int) -> int | None:
        """Process id of a worker."""
        return self._processes[worker].pid

    def start_worker(self) -> int:
        """Start a worker on the first job that has none."""
        worker = self._workers_started
        self._workers_started += 1
        taken = self._slots.values()
        self._slots[worker] = next(i for i in range(len(self._jobs)) if i not in taken)
        driver_end, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(self._jobs[self._slots[worker]], worker, worker_end),
            daemon=True,
            name=f"featuredb worker {worker}",
        )
        process.start()
        worker_end.close()
        self._processes[worker], self._pipes[worker] = process, driver_end
        return worker

    def collect(self, worker: int, partition: int) -> None:
        # If the worker has just died, `events` reports it.
        with suppress(OSError):
            self._pipes[worker].send(partition)

    def events(self) -> Iterator[Event]:
        ready = wait(self._pipes.values())
        for worker in [w for w, pipe in self._pipes.items() if pipe in ready]:
            try:
                event = self._pipes[worker].recv()
            except (EOFError, OSError):
                event = WorkerDied(worker, self._reap(worker))
            yield event

    def close(self) -> None:
        """Kill every worker. Unfinished partitions are lost."""
        for process in self._processes.values():
            process.kill()
        for worker in list(self._processes):
            self._reap(worker)

    def _reap(self, worker: int) -> str:
        """Release a worker's process and say how it ended."""
        process = self._processes.pop(worker)
        self._pipes.pop(worker).close()
        self._slots.pop(worker)
        process.join()
        code = process.exitcode or 0
        process.close()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _work(job: Job, number: int, pipe: Connection[Event, int]) -> None:
    """Main function of a worker's process. Ends when the driver closes the pipe or dies."""
    # Ctrl-C reaches the whole process group. The driver handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its own would be shared among processes, and one that is killed leaves it behind.
    tqdm.set_lock(threading.RLock())
    lock = threading.Lock()

    def send(event: Event) -> None:
        with lock:
            pipe.send(event)

    with failures(number, send):
        worker = Worker(job, number, send)
        send(WorkerReady(number, worker.name))
        with suppress(EOFError):
            while True:
                worker.collect(pipe.recv())
