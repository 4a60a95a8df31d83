"""Handing partitions out to workers that may die, whatever kind of workers they are."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from featuredb.errors import IngestError
from ingest.extract.partition import Report
from ingest.run_plan import Summary

TRIES = 3
"""Workers that one partition may outlive, and workers in a row that may die before they begin."""


class Ready(NamedTuple):
    """A worker has loaded its model. name: which process it is."""

    worker: int
    name: str


class Progress(NamedTuple):
    """How far a worker is with a partition, counted from the partition's start."""

    worker: int
    partition: int
    tokens: int
    activations: int


class Collected(NamedTuple):
    """A worker holds a partition in memory."""

    worker: int
    partition: int


class Written(NamedTuple):
    """A worker has finished a partition."""

    worker: int
    summary: Summary


class Gone(NamedTuple):
    """A worker has died. how: as in "was killed by SIGKILL"."""

    worker: int
    how: str


class Noted(NamedTuple):
    """A worker has something to tell the user."""

    text: str


Event = Ready | Progress | Collected | Written | Gone | Noted


class Crew(Protocol):
    """A kind of workers. None of these calls waits for a worker but `events`."""

    def hire(self) -> int:
        """Start one more worker, and say its number."""

    def collect(self, worker: int, partition: int) -> None:
        """Let a worker collect a partition; it says `Progress` now and then, then `Collected`."""

    def write(self, worker: int, partition: int) -> None:
        """Let a worker write what it has collected, meanwhile perhaps collecting another."""

    def events(self) -> Iterable[Event]:
        """What has happened since, waiting for something to happen; maybe nothing.

        Raises the error that stopped a worker.
        """


@dataclass
class _Hand:
    """A worker. progress: tokens and activations of the partitions it holds."""

    name: str = ""
    collecting: int | None = None
    writing: set[int] = field(default_factory=set)
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def free(self) -> bool:
        # One written while the next one runs, and no more: what waits is in memory.
        return bool(self.name) and self.collecting is None and len(self.writing) < 2


def dispatch(
    crew: Crew,
    partitions: Sequence[int],
    workers: int,
    report: Report,
    note: Callable[[str], None],
) -> Iterator[Summary]:
    """Run `partitions` on `workers` workers of a crew; their summaries as they come.

    What a dead worker held is handed to another, and a new worker takes its place. report: told
    tokens and activations, taken back (negative) for what was lost. Raises `IngestError` when one
    partition, or the start, goes on killing workers, and what `crew.events` raises.
    """
    waiting, left = deque(partitions), set(partitions)
    hands: dict[int, _Hand] = {}
    tries: Counter[int] = Counter()
    stillborn = 0

    def advance(hand: _Hand, partition: int, tokens: int, activations: int) -> None:
        before = hand.progress.get(partition, (0, 0))
        hand.progress[partition] = tokens, activations
        report(tokens - before[0], activations - before[1])

    while left:
        while len(hands) < min(workers, len(left)):
            hands[crew.hire()] = _Hand()
        for number, hand in hands.items():
            if waiting and hand.free:
                hand.collecting = waiting.popleft()
                hand.progress[hand.collecting] = 0, 0
                crew.collect(number, hand.collecting)
        for event in crew.events():
            match event:
                case Ready(worker, name):
                    hands[worker].name = name
                    stillborn = 0
                case Progress(worker, partition, tokens, activations):
                    if worker in hands and partition in hands[worker].progress:
                        advance(hands[worker], partition, tokens, activations)
                case Collected(worker, partition):
                    hands[worker].collecting = None
                    hands[worker].writing.add(partition)
                    crew.write(worker, partition)
                case Written(worker, summary):
                    hand = hands[worker]
                    hand.writing.discard(summary.partition)
                    rows = sum(segment.rows for segment in summary.segments)
                    advance(hand, summary.partition, summary.tokens, rows)
                    del hand.progress[summary.partition]
                    left.discard(summary.partition)
                    yield summary
                case Gone(worker, how):
                    hand = hands.pop(worker)
                    lost = sorted(hand.progress)
                    stillborn += not hand.name
                    for partition in lost:
                        advance(hand, partition, 0, 0)
                        tries[partition] += 1
                    waiting.extendleft(reversed(lost))
                    _give_up(how, stillborn, tries)
                    note(f"{hand.name or 'a worker'} {how}{_again(lost)}")
                case Noted(text):
                    note(text)


def _give_up(how: str, stillborn: int, tries: Counter[int]) -> None:
    if stillborn >= TRIES:
        raise IngestError(
            f"{stillborn} workers in a row did not live to load the model (the last {how}): "
            "give them more memory or fewer --workers; in a script, call featuredb.ingest below "
            "if __name__ == '__main__'"
        )
    # Both that a worker held are named: which of them it died of cannot be told.
    lost = sorted(partition for partition, times in tries.items() if times >= TRIES)
    if lost:
        raise IngestError(
            f"{_named(lost)} was lost with {TRIES} workers (the last {how}): "
            "give them more memory or a smaller --memory, then run the same command again"
        )


def _again(lost: Sequence[int]) -> str:
    if not lost:
        return ": another takes its place"
    return f": {_named(lost)} will be run again"


def _named(partitions: Sequence[int]) -> str:
    return "partition " + " and ".join(str(number) for number in partitions)
