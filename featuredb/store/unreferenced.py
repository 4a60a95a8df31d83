"""Files that no snapshot names: what interrupted or outdated writes left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from featuredb.errors import CorruptDatabaseError
from featuredb.store.files.atomic import remove_tree, storage_errors, sweep
from featuredb.store.history import kept_numbers, read_snapshot, snapshot_numbers
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot


def clean_up(layout: Layout, snapshot: Snapshot) -> None:
    """After publishing `snapshot`: no plan waits any more, and nothing without a name stays.

    Where an older snapshot is damaged, what it names cannot be told, so everything stays; verifying
    tells of it, and a vacuum stops at it.
    """
    remove_tree(layout.staging)
    with suppress(CorruptDatabaseError):
        remove_unnamed(layout, snapshot)


def remove_unnamed(layout: Layout, live: Snapshot) -> tuple[int, int]:
    """Remove what no snapshot on the disk names; (files, bytes) removed.

    Only where no ingest is unfinished: its runs have no name yet.
    """
    for number in snapshot_numbers(layout):
        # Written by a publication that was killed before it put anything in place.
        if number > live.number:
            layout.snapshot(number).unlink()
    snapshots = [live, *kept_snapshots(layout, live)]
    named = {file.path for snapshot in snapshots for file in snapshot.files()}
    tables = {v.table for snapshot in snapshots for v in snapshot.vectors}
    count = freed = 0
    with storage_errors(layout.root):
        for path in _stored(layout):
            if layout.relative(path) not in named:
                freed += path.stat().st_size
                count += 1
                path.unlink()
        for table in layout.vectors.glob("*.lance"):
            if table.stem not in tables:
                files = [path for path in table.rglob("*") if path.is_file()]
                freed += sum(path.stat().st_size for path in files)
                count += len(files)
                remove_tree(table)
        for folder in (layout.root, *_parts(layout), layout.vectors):
            sweep(folder)
        for part in _parts(layout):
            _remove_empty(part)
    return count, freed


def kept_snapshots(layout: Layout, live: Snapshot) -> list[Snapshot]:
    """The snapshots before the live one that are on the disk, by number."""
    numbers = kept_numbers(layout)
    return [read_snapshot(layout, number) for number in numbers if number != live.number]


def _parts(layout: Layout) -> tuple[Path, ...]:
    """The folders every file of which a snapshot names."""
    return layout.corpora, layout.segments, layout.derived, layout.matrices, layout.orders


def _stored(layout: Layout) -> Iterator[Path]:
    for part in _parts(layout):
        yield from (path for path in part.rglob("*") if path.is_file())


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
