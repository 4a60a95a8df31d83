"""Files that no snapshot names: what interrupted or outdated writes left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from featuredb.errors import CorruptDatabaseError
from featuredb.store.files.atomic import remove_tree, storage_errors, sweep, temporary_files
from featuredb.store.history import kept_snapshots, snapshot_numbers
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot


def clean_up(layout: Layout, live: Snapshot) -> None:
    """Remove the staging folder and every unreferenced file, after publishing `live`.

    If an older snapshot is damaged, its files are unknown, so every file stays. `verify`
    reports the damage, and `vacuum` stops at it.
    """
    remove_tree(layout.staging)
    with suppress(CorruptDatabaseError):
        remove_unreferenced(layout, live)


def remove_unreferenced(layout: Layout, live: Snapshot) -> tuple[int, int]:
    """Remove the files that no snapshot names.

    Only if no ingest is unfinished: no snapshot names its segments yet. Snapshots newer than `live`
    belong to publications killed before they put anything in place, and are removed too.

    Args:
        layout: The database, whose write lock is held.
        live: Its live snapshot.

    Returns:
        Files and bytes removed, snapshots not counted.

    Raises:
        CorruptDatabaseError: An older snapshot cannot be read. Nothing that it may name is removed.
        StorageError: The file system refused.
    """
    for number in snapshot_numbers(layout):
        if number > live.number:
            layout.snapshot(number).unlink()
    snapshots = kept_snapshots(layout)
    count = freed = 0
    with storage_errors(layout.root):
        for path in unreferenced(layout, snapshots):
            freed += path.stat().st_size
            count += 1
            path.unlink()
        for folder in (layout.root, *_parts(layout)):
            sweep(folder)
        for part in _parts(layout):
            _remove_empty(part)
    return count, freed


def unreferenced(layout: Layout, snapshots: Iterable[Snapshot]) -> Iterator[Path]:
    """Files of the database that none of the snapshots names.

    Files with other names in the folder do not belong to the database. The staging folder belongs
    to an ingest that may be resumed.
    """
    named: set[Path] = set()
    for snapshot in snapshots:
        named |= {layout.root / file.path for file in snapshot.files()}
    yield from temporary_files(layout.root)
    for part in _parts(layout):
        for path in sorted(part.rglob("*")):
            if path not in named and path.is_file():
                yield path


def _parts(layout: Layout) -> tuple[Path, ...]:
    """The folders in which a snapshot names every file."""
    return (
        layout.corpora,
        layout.segments,
        layout.derived,
        layout.vectors,
        layout.matrices,
        layout.saes,
        layout.orders,
        layout.user_data,
    )


def _remove_empty(folder: Path) -> None:
    """Remove the empty folders below `folder`."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
