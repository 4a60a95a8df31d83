"""Dispatch partitions to workers of any kind, which may die."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from featuredb.errors import FeatureDBError, IngestError
from featuredb.render.progress import log
from ingest.extract.partition import Report
from ingest.run_plan import Summary

TRIES = 3
"""Attempts at one partition, and consecutive workers that may die before they are ready."""

_AHEAD = 2
"""Partitions that a worker has yet to collect, at most: one that runs, and the one that it begins
while the last batches of that one come back."""

_MOST_HELD = 4
"""Partitions of a worker at most, with those being written. Each takes up to a quarter of its
memory."""


class WorkerReady(NamedTuple):
    """A worker has loaded its model. name: its process and host."""

    worker: int
    name: str


class PartitionProgress(NamedTuple):
    """More tokens and activations of a partition."""

    worker: int
    partition: int
    tokens: int
    activations: int


class PartitionCollected(NamedTuple):
    """A worker holds all of a partition in memory, and writes it."""

    worker: int
    partition: int


class PartitionWritten(NamedTuple):
    """A worker has written a partition."""

    worker: int
    summary: Summary


class WorkerFailed(NamedTuple):
    """What stopped a worker: an error meant for the user, or None and a traceback."""

    worker: int
    error: FeatureDBError | None
    trace: str


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
    | WorkerFailed
    | WorkerDied
    | WorkerNote
)


class WorkerPool(Protocol):
    """One kind of workers. Only `events` blocks."""

    def start_worker(self) -> int:
        """Start a worker and return its number."""

    def collect(self, worker: int, partition: int) -> None:
        """Let a worker collect and write a partition, after those that it was given before. It
        sends `PartitionProgress`, `PartitionCollected` and `PartitionWritten`."""

    def events(self) -> Iterable[Event]:
        """Wait for events and return them, possibly none. Those of a worker are in order."""


@dataclass
class _Worker:
    """A worker's state. name: empty until it is ready. collecting: in the order in which it was
    given them. progress: tokens and activations of the partitions it holds."""

    name: str = ""
    collecting: deque[int] = field(default_factory=deque)
    writing: set[int] = field(default_factory=set)
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)

    def takes(self, ahead: int) -> bool:
        """Whether it gets another partition, if it has `ahead` of them to collect."""
        held = len(self.collecting) + len(self.writing)
        return bool(self.name) and len(self.collecting) == ahead and held < _MOST_HELD

    def begun(self) -> list[int]:
        """The partitions that are lost with it, ascending."""
        return sorted([*self.writing, *itertools.islice(self.collecting, 1)])


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
        workers: At once.
        report: Called with new tokens and activations, negative for those that were lost.

    Returns:
        Summaries in the order in which partitions finish.

    Raises:
        IngestError: If one partition, or the start, repeatedly kills workers.
        RuntimeError: With a worker's traceback, if it failed. A `FeatureDBError` of a worker is
            raised as it is.
    """
    pending, unfinished = deque(partitions), set(partitions)
    alive: dict[int, _Worker] = {}
    losses: Counter[int] = Counter()
    failed_starts = 0

    while unfinished:
        while len(alive) < min(workers, len(unfinished)):
            alive[pool.start_worker()] = _Worker()
        for ahead in range(_AHEAD):
            for number, worker in alive.items():
                # One ahead only where there is one for every other worker, too.
                if pending and worker.takes(ahead) and len(pending) >= ahead * len(alive):
                    worker.collecting.append(pending.popleft())
                    pool.collect(number, worker.collecting[-1])
        for event in pool.events():
            match event:
                case WorkerReady(number, name):
                    alive[number].name = name
                    failed_starts = 0
                case PartitionProgress(number, partition, tokens, activations):
                    progress = alive[number].progress
                    before = progress.get(partition, (0, 0))
                    progress[partition] = before[0] + tokens, before[1] + activations
                    report(tokens, activations)
                case PartitionCollected(number, partition):
                    alive[number].collecting.remove(partition)
                    alive[number].writing.add(partition)
                case PartitionWritten(number, summary):
                    worker = alive[number]
                    worker.writing.remove(summary.partition)
                    del worker.progress[summary.partition]
                    unfinished.discard(summary.partition)
                    yield summary
                case WorkerFailed(_, error, trace):
                    raise error or RuntimeError(f"a worker failed:\n{trace}")
                case WorkerDied(number, how):
                    worker = alive.pop(number)
                    failed_starts += not worker.name
                    lost = worker.begun()
                    for partition in lost:
                        tokens, activations = worker.progress.get(partition, (0, 0))
                        report(-tokens, -activations)
                        losses[partition] += 1
                    pending.extendleft(sorted({*lost, *worker.collecting}, reverse=True))
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
    # A worker may have held several partitions. Any may have killed it, so all are named.
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
