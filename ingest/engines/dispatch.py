"""Dispatch partitions to workers of any kind, which may die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from featuredb.errors import IngestError
from featuredb.render.progress import log
from ingest.extract.partition import Report
from ingest.run_plan import Summary

TRIES = 3
"""Attempts at one partition, and consecutive workers that may die before they are ready."""


class WorkerReady(NamedTuple):
    """A worker has loaded its model. name: its process and host."""

    worker: int
    name: str


class PartitionProgress(NamedTuple):
    """Tokens and activations of a partition so far."""

    worker: int
    partition: int
    tokens: int
    activations: int


class PartitionCollected(NamedTuple):
    """A worker holds a partition in memory."""

    worker: int
    partition: int


class PartitionWritten(NamedTuple):
    """A worker has written a partition."""

    worker: int
    summary: Summary


class WorkerDied(NamedTuple):
    """A worker has died. how: as in "was killed by SIGKILL"."""

    worker: int
    how: str


class WorkerNote(NamedTuple):
    """A message from a worker to the user."""

    text: str


Event = (
    WorkerReady
    | PartitionProgress
    | PartitionCollected
    | PartitionWritten
    | WorkerDied
    | WorkerNote
)


class WorkerPool(Protocol):
    """One kind of workers. Only `events` blocks."""

    def start_worker(self) -> int:
        """Start a worker and return its number."""

    def collect(self, worker: int, partition: int) -> None:
        """Let a worker collect a partition. It sends `PartitionProgress`, then
        `PartitionCollected`."""

    def write(self, worker: int, partition: int) -> None:
        """Let a worker write a collected partition. It may collect another meanwhile."""

    def events(self) -> Iterable[Event]:
        """Wait for events and return them, possibly none.

        Raises the error that stopped a worker.
        """


@dataclass
class _Worker:
    """A worker's state. progress: tokens and activations of the partitions it holds."""

    name: str = ""
    collecting: int | None = None
    writing: set[int] = field(default_factory=set)
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        # Each partition that waits to be written takes memory: at most one while the next runs.
        return bool(self.name) and self.collecting is None and len(self.writing) < 2


def dispatch(
    pool: WorkerPool,
    partitions: Sequence[int],
    workers: int,
    report: Report,
) -> Iterator[Summary]:
    """Run partitions on the workers of a pool.

    A worker that dies is replaced, and its partitions are run again.

    Args:
        pool: Starts workers and talks to them.
        partitions: Numbers of partitions in the plan.
        engine: Engine at once.
        report: Called with new tokens and activations, negative for those that were lost.

    Returns:
        Summaries in the order in which partitions finish.

    Raises:
        IngestError: If one partition, or the start, repeatedly kills workers. Errors of
            `WorkerPool.events` propagate.
    """
    pending, unfinished = deque(partitions), set(partitions)
    alive: dict[int, _Worker] = {}
    losses: Counter[int] = Counter()
    failed_starts = 0

    def advance(worker: _Worker, partition: int, tokens: int, activations: int) -> None:
        before = worker.progress.get(partition, (0, 0))
        worker.progress[partition] = tokens, activations
        report(tokens - before[0], activations - before[1])

    while unfinished:
        while len(alive) < min(workers, len(unfinished)):
            alive[pool.start_worker()] = _Worker()
        for number, worker in alive.items():
            if pending and worker.idle:
                worker.collecting = pending.popleft()
                worker.progress[worker.collecting] = 0, 0
                pool.collect(number, worker.collecting)
        for event in pool.events():
            match event:
                case WorkerReady(number, name):
                    alive[number].name = name
                    failed_starts = 0
                case PartitionProgress(number, partition, tokens, activations):
                    if number in alive and partition in alive[number].progress:
                        advance(alive[number], partition, tokens, activations)
                case PartitionCollected(number, partition):
                    alive[number].collecting = None
                    alive[number].writing.add(partition)
                    pool.write(number, partition)
                case PartitionWritten(number, summary):
                    worker = alive[number]
                    worker.writing.discard(summary.partition)
                    rows = sum(segment.rows for segment in summary.segments)
                    advance(worker, summary.partition, summary.tokens, rows)
                    del worker.progress[summary.partition]
                    unfinished.discard(summary.partition)
                    yield summary
                case WorkerDied(number, how):
                    worker = alive.pop(number)
                    lost = sorted(worker.progress)
                    failed_starts += not worker.name
                    for partition in lost:
                        advance(worker, partition, 0, 0)
                        losses[partition] += 1
                    pending.extendleft(reversed(lost))
                    _check_losses(how, failed_starts, losses)
                    log.info(f"{worker.name or 'a worker'} {how}{_consequence(lost)}")
                case WorkerNote(text):
                    log.info(text)


def _check_losses(how: str, failed_starts: int, losses: Counter[int]) -> None:
    """Raise `IngestError` when trying again is pointless."""
    if failed_starts >= TRIES:
        raise IngestError(
            f"{failed_starts} workers in a row did not live to load the model (the last {how}): "
            "give them more memory or fewer --workers; in a script, call featuredb.ingest below "
            "if __name__ == '__main__'"
        )
    # A worker may have held two partitions. Either may have killed it, so both are named.
    lost = sorted(partition for partition, count in losses.items() if count >= TRIES)
    if lost:
        raise IngestError(
            f"{_listed(lost)} was lost with {TRIES} workers (the last {how}): "
            "give them more memory or a smaller --memory, then run the same command again"
        )


def _consequence(lost: Sequence[int]) -> str:
    return f": {_listed(lost)} will be run again" if lost else ": another takes its place"


def _listed(partitions: Sequence[int]) -> str:
    return "partition " + " and ".join(str(number) for number in partitions)
