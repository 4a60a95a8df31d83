"""Results of writing to a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featuredb.store.snapshot import Snapshot


@dataclass(frozen=True)
class Outcome:
    """Result of `featuredb.ingest`, `append` and `add_saes`.

    Attributes:
        snapshot: the published snapshot.
        fresh: False if the work was already done and nothing was written.
    """

    snapshot: Snapshot
    fresh: bool


@dataclass(frozen=True)
class Compacted:
    """Result of `featuredb.compact`.

    Attributes:
        snapshot: the live snapshot.
        before: segments before.
        after: segments now.
    """

    snapshot: Snapshot
    before: int
    after: int


@dataclass(frozen=True)
class Vacuumed:
    """Result of `featuredb.vacuum`.

    Attributes:
        snapshots: numbers of the removed snapshots.
        files: files removed.
        bytes: bytes freed.
        kept: older snapshots still there, by number, with the earliest time each may be removed.
            9999-12-31 if the grace period extends past it.
    """

    snapshots: tuple[int, ...]
    files: int
    bytes: int
    kept: dict[int, datetime]


@dataclass(frozen=True)
class Labeled:
    """Result of writing many labels at once.

    Attributes:
        snapshot: the live snapshot.
        labels: labels written.
        duplicates: labels skipped, because they were there already, or twice among those given.
        scores: scores written.
    """

    snapshot: Snapshot = field(repr=False)
    labels: int
    duplicates: int
    scores: int


@dataclass(frozen=True)
class Explained:
    """Result of `featuredb.explain`.

    Attributes:
        labels: new labels.
        scores: scores written.
        already: features that had such a label, or such scores, before.
        too_few: features that fire in too few contexts.
        malformed: answers that could not be read.
        requests: requests sent, those sent again included.
        retried: requests sent again, after a failure or because the server was busy.
        tokens_in: as the server counts them. 0 where it does not.
        tokens_out: the same of answers.
    """

    labels: int
    scores: int
    already: int
    too_few: int
    malformed: int
    requests: int
    retried: int
    tokens_in: int
    tokens_out: int
