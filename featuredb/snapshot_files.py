"""The snapshots in a database's folder: published, read, and listed while they are kept.

Files are written first, then the snapshot that names them, then ``CURRENT`` by an atomic rename,
so a reader sees all of a change or none of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
)
from featuredb.files import fsync_path, sha256_of, write_atomically
from featuredb.layout import Layout
from featuredb.pointer import Pointer, read_pointer
from featuredb.snapshot import File, Snapshot, decode_snapshot

_SNAPSHOT = re.compile(r"[0-9]{6,}\.json")


def write_snapshot(layout: Layout, snapshot: Snapshot, catalog: Path | None = None) -> Snapshot:
    """Make `snapshot` the live one. Everything it names must be on the disk.

    catalog: its catalog under a temporary name, to be put in place; by default the one that is
    there. Between that rename and the one of ``CURRENT`` other DuckDB clients see the new snapshot
    and featuredb the old one, both of them whole; a writer killed there is followed by
    `finish_publication`. Returns the snapshot as written: with the catalog's checksum, and those
    of the snapshots before it.
    """
    path = layout.snapshot(snapshot.number)
    snapshot = msgspec.structs.replace(
        snapshot,
        catalog=_catalog(layout, catalog or layout.catalog),
        older=_older(layout, snapshot.number),
    )
    data = msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n"
    write_atomically(path, data)
    if catalog is not None:
        os.replace(catalog, layout.catalog)
        fsync_path(layout.root)
    write_atomically(layout.current, Pointer(path.stem, sha256(data).hexdigest()).line())
    return snapshot


def unfinished_publication(layout: Layout) -> bytes | None:
    """The snapshot after the live one, as its file has it, where all of it is in place but
    ``CURRENT``: the catalog is that snapshot's already."""
    number = read_snapshot(layout).number if layout.current.exists() else 0
    try:
        raw = layout.snapshot(number + 1).read_bytes()
        catalog = msgspec.json.decode(raw, type=Snapshot).catalog
    except (OSError, msgspec.MsgspecError):
        return None
    if catalog is None or not layout.catalog.exists():
        return None
    return raw if sha256_of(layout.catalog) == catalog.sha256 else None


def finish_publication(layout: Layout) -> None:
    """Publish what a writer was killed publishing, if all but the last step was done.

    To be called under the write lock.
    """
    raw = unfinished_publication(layout)
    if raw is not None:
        name = layout.snapshot(msgspec.json.decode(raw, type=Snapshot).number).stem
        fsync_path(layout.root)  # the catalog's name, which the writer may not have come to
        write_atomically(layout.current, Pointer(name, sha256(raw).hexdigest()).line())


def _catalog(layout: Layout, path: Path) -> File | None:
    if not path.exists():
        return None
    return File(layout.relative(layout.catalog), 0, path.stat().st_size, sha256_of(path))


def _older(layout: Layout, number: int) -> tuple[File, ...]:
    """The snapshots below `number` that are kept, with the checksums they were published with."""
    if not layout.current.exists():
        return ()
    pointer = read_pointer(layout)
    live = read_snapshot(layout)
    path = layout.snapshot(live.number)
    own = File(layout.relative(path), 0, path.stat().st_size, pointer.sha256 or sha256_of(path))
    known = [f for f in (*live.older, own) if f.path != layout.relative(layout.snapshot(number))]
    return tuple(f for f in known if (layout.root / f.path).exists())


def _recorded(layout: Layout, number: int) -> Pointer:
    """A snapshot by number, with its checksum as far as the live one can be read for it."""
    path = layout.snapshot(number)
    try:
        pointer = read_pointer(layout)
        if pointer.name == path.stem:
            return pointer
        told = {f.path: f.sha256 for f in read_snapshot(layout).older}
    except (OSError, DatabaseError):
        told = {}
    return Pointer(path.stem, told.get(layout.relative(path)))


def read_snapshot(layout: Layout, number: int | None = None) -> Snapshot:
    """The live snapshot, or the one of that number while it is kept.

    Raises `DatabaseNotFoundError`, `DatabaseNotReadyError` while a first ingest is unfinished,
    `FormatVersionError` for a newer format, `CorruptDatabaseError` for an unreadable snapshot.
    """
    root = layout.root
    if not root.is_dir():
        raise DatabaseNotFoundError(
            f"there is no database at {root}: check the path, or make one with `featuredb ingest`"
        )
    try:
        pointer = read_pointer(layout) if number is None else _recorded(layout, number)
    except FileNotFoundError:
        if layout.staging.is_dir() or layout.lock.exists():
            raise DatabaseNotReadyError(
                f"{root} is still being ingested and has nothing to read yet: wait for it, "
                "or run the same `featuredb ingest` again to continue it"
            ) from None
        raise DatabaseNotFoundError(
            f"{root} is not a featuredb database (it has no CURRENT file): check the path"
        ) from None
    if number is not None and number not in (kept := kept_numbers(layout)):
        raise DatabaseNotFoundError(f"{root} has no snapshot {number}: it keeps {_listed(kept)}")
    path = layout.snapshots / f"{pointer.name}.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorruptDatabaseError(
            f"the snapshot {path} cannot be read ({error}): restore it from a copy"
        ) from error
    return decode_snapshot(raw, pointer, str(path), str(root))


def snapshot_numbers(layout: Layout) -> list[int]:
    """The numbers of the snapshots on the disk, ascending. One above the live one is of a
    publication that is under way, or was killed."""
    names = (path.name for path in layout.snapshots.glob("*.json"))
    return sorted(int(name[:-5]) for name in names if _SNAPSHOT.fullmatch(name))


def kept_numbers(layout: Layout) -> list[int]:
    """The numbers of the published snapshots that are kept, ascending; of all on the disk where
    ``CURRENT`` names none of them."""
    numbers = snapshot_numbers(layout)
    try:
        live = int(read_pointer(layout).name)
    except (OSError, DatabaseError):
        return numbers
    return [number for number in numbers if number <= live or live not in numbers]


def _listed(numbers: Sequence[int]) -> str:
    """``3, 5 to 8`` for 3, 5, 6, 7 and 8."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans) or "none"
