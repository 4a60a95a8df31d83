"""Vacuum a database: remove older snapshots and the files that only they use."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from featuredb.errors import OptionError
from featuredb.store.files.atomic import fsync_path, remove_tree, storage_errors
from featuredb.store.files.lock import write_lock
from featuredb.store.history import kept_snapshots, refuse_nothing_to_write_to
from featuredb.store.layout import Layout
from featuredb.store.outcomes import Vacuumed
from featuredb.store.snapshot import Snapshot
from featuredb.store.unreferenced import remove_unreferenced
from ingest.change import after_the_last_writer, refuse_unfinished
from ingest.run_plan import plan_path

_FAR = datetime(9999, 12, 31, tzinfo=UTC)
"""The latest date that exists in every time zone."""


def vacuum(path: str | Path, *, grace: timedelta, unfinished: bool = False) -> Vacuumed:
    """Remove snapshots that were replaced longer than `grace` ago, and the files only they use.

    A reader that has one of them open loses it. unfinished: also discard an unfinished ingest.
    After an interruption, call it again. Raises `DatabaseError`, `UnfinishedError` if there is an
    unfinished ingest and it is not to be discarded, `StorageError`.
    """
    if grace < timedelta(0):
        raise OptionError(f"a grace period cannot be negative: {grace}")
    layout = Layout(Path(path).expanduser().resolve())
    refuse_nothing_to_write_to(layout)
    with write_lock(layout, "vacuum"), storage_errors(layout.root):
        files, freed = 0, 0
        # First, because an unreadable plan can only be discarded.
        if unfinished or not plan_path(layout).exists():
            files, freed = _remove_staging(layout)
        live = after_the_last_writer(layout)
        refuse_unfinished(layout)
        older = kept_snapshots(layout)[:-1]
        replaced = _replaced(layout, [*older, live])
        now = datetime.now(UTC)
        # If a clock was ahead, an age would be negative.
        ages = {number: max(now - when, timedelta(0)) for number, when in replaced.items()}
        expired = [s.number for s in older if ages[s.number] >= grace]
        # Snapshots before their files, so that no reader opens one while its files are removed.
        for number in expired:
            layout.snapshot(number).unlink()
        if expired:
            fsync_path(layout.snapshots)
        unused, unused_bytes = remove_unreferenced(layout, live)
        remaining = {n: _later(when, grace) for n, when in replaced.items() if n not in expired}
        return Vacuumed(tuple(expired), files + unused, freed + unused_bytes, remaining)


def _remove_staging(layout: Layout) -> tuple[int, int]:
    """Discard an unfinished ingest, if there is one. Returns (files, bytes) removed."""
    sizes = [path.stat().st_size for path in layout.staging.rglob("*") if path.is_file()]
    if layout.staging.exists():
        remove_tree(layout.staging)
        # After a power failure a plan must not reappear without the files it needs.
        fsync_path(layout.root)
    return len(sizes), sum(sizes)


def _replaced(layout: Layout, snapshots: Sequence[Snapshot]) -> dict[int, datetime]:
    """The latest time at which each snapshot but the last may have been replaced, by number.

    A snapshot may be created long before it takes over: by a writer that was killed before it
    renamed ``CURRENT``, or elsewhere, before it was pulled. So file times count too.
    """
    replaced = {}
    for one, after in pairwise(snapshots):
        files = [layout.snapshot(after.number)]
        if after is snapshots[-1]:
            files.append(layout.current)
        written = [datetime.fromtimestamp(file.stat().st_mtime, UTC) for file in files]
        replaced[one.number] = max(datetime.fromisoformat(after.created), *written)
    return replaced


def _later(moment: datetime, wait: timedelta) -> datetime:
    return moment + wait if wait < _FAR - moment else _FAR
