"""Vacuuming: older snapshots go, and with them every file that only they named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from featuredb.errors import OptionError
from featuredb.store.files.atomic import fsync_path, remove_tree, storage_errors
from featuredb.store.files.lock import write_lock
from featuredb.store.history import refuse_nothing_to_write_to
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.store.unreferenced import kept_snapshots, remove_unnamed
from ingest.change import after_the_last_writer, refuse_unfinished
from ingest.run_plan import plan_path

GRACE = timedelta(hours=1)
"""Readers are pinned to the snapshot they opened: one stays this long after a newer came."""

_FAR = datetime(9999, 12, 31, tzinfo=UTC)
"""Later than anybody waits, and a date in every time zone."""


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum removed, and the older snapshots it left, by number, with when each may go:
    at the end of the year 9999 where the grace period is longer than dates are."""

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
    refuse_nothing_to_write_to(layout)
    with write_lock(layout, "vacuum"), storage_errors(layout.root):
        files, freed = 0, 0
        # First of all: nothing can be made of a plan that cannot be read but to give it up.
        if unfinished or not plan_path(layout).exists():
            files, freed = _remove_staging(layout)
        live = after_the_last_writer(layout)
        refuse_unfinished(layout)
        older = kept_snapshots(layout, live)
        replaced = _replaced(layout, [*older, live])
        now = datetime.now(UTC)
        # A clock that is ahead must not keep what may go at once.
        ages = {number: max(now - when, timedelta(0)) for number, when in replaced.items()}
        doomed = [s.number for s in older if ages[s.number] >= grace]
        # Their names first: nobody opens one whose files are going.
        for number in doomed:
            layout.snapshot(number).unlink()
        if doomed:
            fsync_path(layout.snapshots)
        unnamed, more = remove_unnamed(layout, live)
        kept = {n: _later(when, grace) for n, when in replaced.items() if n not in doomed}
        return Vacuumed(tuple(doomed), files + unnamed, freed + more, kept)


def _remove_staging(layout: Layout) -> tuple[int, int]:
    """Give up what was begun, if anything was; (files, bytes) removed."""
    sizes = [path.stat().st_size for path in layout.staging.rglob("*") if path.is_file()]
    if layout.staging.exists():
        remove_tree(layout.staging)
        # A plan must not be found again after a power cut that has taken what it stands on.
        fsync_path(layout.root)
    return len(sizes), sum(sizes)


def _replaced(layout: Layout, snapshots: Sequence[Snapshot]) -> dict[int, datetime]:
    """When each snapshot but the last was replaced, as late as can be: by number.

    A snapshot may be made long before it takes over: by a writer that was killed before it renamed
    ``CURRENT``, or elsewhere, before it was pulled. So the times of the files count too.
    """
    found = {}
    for one, after in pairwise(snapshots):
        files = [layout.snapshot(after.number)]
        if after is snapshots[-1]:
            files.append(layout.current)
        written = [datetime.fromtimestamp(file.stat().st_mtime, UTC) for file in files]
        found[one.number] = max(datetime.fromisoformat(after.created), *written)
    return found


def _later(moment: datetime, wait: timedelta) -> datetime:
    return moment + wait if wait < _FAR - moment else _FAR
