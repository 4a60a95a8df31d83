"""Vacuuming: older snapshots go, and with them every file that only they named."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from featuredb.errors import OptionError
from featuredb.files import fsync_path, remove_tree, storage_errors
from featuredb.layout import Layout
from featuredb.lock import write_lock
from featuredb.snapshot import Snapshot, read_snapshot
from ingest.change import after_the_last_writer, refuse_unfinished
from ingest.unnamed import kept_snapshots, remove_unnamed

GRACE = timedelta(hours=1)
"""Readers are pinned to the snapshot they opened: one stays this long after a newer came."""


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum removed, and the older snapshots it left, by number, with when each may go."""

    snapshots: tuple[int, ...]
    files: int
    bytes: int
    kept: dict[int, datetime]


def vacuum(path: str | Path, *, grace: timedelta = GRACE, unfinished: bool = False) -> Vacuumed:
    """Remove the snapshots that a newer one replaced longer than `grace` ago, and what only they
    named.

    A reader that has one of them open loses it. unfinished: also give up an ingest that was begun
    and not finished. Killed at any moment it may be called again. Raises `DatabaseError`,
    `UnfinishedError` where an ingest waits and is not given up, `StorageError`.
    """
    if grace < timedelta(0):
        raise OptionError(f"a grace period cannot be negative: {grace}")
    layout = Layout(Path(path).expanduser().resolve())
    read_snapshot(layout)
    with write_lock(layout, "vacuum"), storage_errors(layout.root):
        live = after_the_last_writer(layout)
        if unfinished:
            remove_tree(layout.staging)
        refuse_unfinished(layout)
        older = kept_snapshots(layout, live)
        until = _until([*older, live], grace)
        now = datetime.now(UTC)
        doomed = [s.number for s in older if until[s.number] <= now]
        # Their names first: nobody opens one whose files are going.
        for number in doomed:
            layout.snapshot(number).unlink()
        if doomed:
            fsync_path(layout.snapshots)
        files, freed = remove_unnamed(layout, live)
        kept = {s.number: until[s.number] for s in older if s.number not in doomed}
        return Vacuumed(tuple(doomed), files, freed, kept)


def _until(snapshots: list[Snapshot], grace: timedelta) -> dict[int, datetime]:
    """When each snapshot but the last may go: `grace` after the next was made."""
    return {
        one.number: datetime.fromisoformat(after.created) + grace
        for one, after in pairwise(snapshots)
    }
