"""The snapshots in a database's folder: published, read, and listed while they are kept.

Files are written first, then the snapshot that names them, then ``CURRENT`` by an atomic rename,
so a reader sees all of a change or none of it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FeatureDBError,
    RemoteError,
)
from featuredb.store.current import Pointer, read_pointer
from featuredb.store.files.atomic import fsync_path, sha256_of, write_atomically
from featuredb.store.files.lock import last_holder
from featuredb.store.files.remote import RemoteFiles
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Snapshot, decode_snapshot

PUSHING = "staging/push.json"
"""The snapshot that is being copied to the URL, as long as it is."""

_SNAPSHOT = re.compile(r"[0-9]{6,}\.json")


def write_snapshot(layout: Layout, snapshot: Snapshot, catalog: Path | None = None) -> Snapshot:
    """Make `snapshot` the live one. All its files must be on disk.

    catalog: its catalog under a temporary name, to be put in place. By default the one that is
    there. Between that rename and the one of ``CURRENT`` other DuckDB clients see the new snapshot
    and featuredb the old one, both of them whole. After a kill there the next writer calls
    `finish_publication`. Returns the snapshot as written: with the catalog's checksum, and those of
    the snapshots before it.
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


def now() -> str:
    """The time, UTC, as snapshots write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_mark(layout: Layout, number: int) -> File:
    """See `Snapshot.mark`."""
    unique = uuid.uuid4().hex
    path = layout.mark(number, unique)
    write_atomically(path, f"{unique}\n".encode())
    for folder in path.parents[1:3]:
        fsync_path(folder)
    return file_entry(layout, path)


def unfinished_publication(layout: Layout) -> Pointer | None:
    """A snapshot newer than the live one that only lacks ``CURRENT``: the catalog is already its
    own. A pull may have skipped numbers."""
    live = read_snapshot(layout).number if layout.current.exists() else 0
    above = [number for number in snapshot_numbers(layout) if number > live]
    digest = sha256_of(layout.catalog) if above and layout.catalog.exists() else None
    for number in above:
        try:
            raw = layout.snapshot(number).read_bytes()
            snapshot = msgspec.json.decode(raw, type=Snapshot)
        except (OSError, msgspec.MsgspecError):
            continue
        catalog = snapshot.catalog
        if snapshot.number == number and catalog is not None and catalog.sha256 == digest:
            return Pointer(layout.snapshot(number).stem, sha256(raw).hexdigest())
    return None


def finish_publication(layout: Layout) -> None:
    """Finish the publication of a killed writer, if only the last step is missing.

    To be called under the write lock.
    """
    pointer = unfinished_publication(layout)
    if pointer is not None:
        fsync_path(layout.root)  # the catalog's name, which the writer may not have flushed
        # It goes live only now, so the grace period of the previous one's readers starts here.
        snapshot = layout.snapshots / f"{pointer.name}.json"
        os.utime(snapshot)
        fsync_path(snapshot)
        write_atomically(layout.current, pointer.line())


def refuse_nothing_to_write_to(layout: Layout) -> None:
    """For writers, before they lock or create anything. Raises as `read_snapshot`, but not if
    `finish_publication` will publish the first snapshot."""
    if unfinished_publication(layout) is None:
        read_snapshot(layout)


def file_entry(
    layout: Layout,
    written: Path,
    folder: Path | None = None,
    final: Path | None = None,
    rows: int = 0,
) -> File:
    """Describe a file as a snapshot lists it.

    Args:
        layout: The database.
        written: The file, as it lies on the disk now.
        folder: What is about to be renamed to `final`: a folder above the file, or the file.
        final: The new name. By default the file is in place.
        rows: Rows of a table or an array.

    Returns:
        Path, rows, size and SHA-256.
    """
    folder, final = folder or layout.root, final or layout.root
    return File(
        path=layout.relative(final / written.relative_to(folder)),
        rows=rows,
        bytes=written.stat().st_size,
        sha256=sha256_of(written),
    )


def _catalog(layout: Layout, path: Path) -> File | None:
    if not path.exists():
        return None
    return file_entry(layout, path, path, layout.catalog)


def _older(layout: Layout, number: int) -> tuple[File, ...]:
    """The older snapshots that exist, with the checksums they were published with."""
    if not layout.current.exists():
        return ()
    pointer = read_pointer(layout)
    live = read_snapshot(layout)
    path = layout.snapshot(live.number)
    entry = File(layout.relative(path), 0, path.stat().st_size, pointer.sha256 or sha256_of(path))
    known = [f for f in (*live.older, entry) if f.path != layout.relative(layout.snapshot(number))]
    return tuple(f for f in known if (layout.root / f.path).exists())


def _recorded(layout: Layout, number: int) -> Pointer:
    """A snapshot by number, with its checksum if the live one is readable."""
    path = layout.snapshot(number)
    try:
        pointer = read_pointer(layout)
        if pointer.name == path.stem:
            return pointer
        checksums = {f.path: f.sha256 for f in read_snapshot(layout).older}
    except (OSError, DatabaseError):
        checksums = {}
    return Pointer(path.stem, checksums.get(layout.relative(path)))


def read_snapshot(layout: Layout, number: int | None = None) -> Snapshot:
    """The live snapshot, or the one of that number while it is kept.

    Raises `DatabaseNotFoundError`, `DatabaseNotReadyError` while a first ingest or pull is
    unfinished, `FormatVersionError` for a newer format, `CorruptDatabaseError` for an unreadable
    snapshot.
    """
    return read_raw(layout, number)[2]


def read_raw(layout: Layout, number: int | None = None) -> tuple[Pointer, bytes, Snapshot]:
    """A snapshot's name and checksum, its bytes, and these decoded. Raises as `read_snapshot`."""
    root = layout.root
    if not root.is_dir():
        raise DatabaseNotFoundError(
            f"there is no database at {root}: check the path, or make one with `featuredb ingest`"
        )
    try:
        pointer = read_pointer(layout) if number is None else _recorded(layout, number)
    except FileNotFoundError:
        raise _nothing_published(layout) from None
    if number is not None and number not in (numbers := kept_numbers(layout)):
        raise DatabaseNotFoundError(f"{root} has no snapshot {number}: it keeps {_listed(numbers)}")
    path = layout.snapshots / f"{pointer.name}.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        if _is_replaced(layout, pointer, number):
            return read_raw(layout, number)
        raise CorruptDatabaseError(
            f"the snapshot {path} cannot be read ({error}): restore it from a copy"
        ) from error
    return pointer, raw, decode_snapshot(raw, pointer, str(path), str(root))


def _is_replaced(layout: Layout, pointer: Pointer, number: int | None) -> bool:
    """Whether an unreadable snapshot was vacuumed after its name was read."""
    if number is not None:
        return number not in kept_numbers(layout)
    try:
        return read_pointer(layout) != pointer
    except OSError:
        return True


def _nothing_published(layout: Layout) -> DatabaseError:
    """The error for a folder without ``CURRENT``."""
    root = layout.root
    if not layout.staging.is_dir() and not layout.lock.exists():
        return DatabaseNotFoundError(
            f"{root} is not a featuredb database (it has no CURRENT file): check the path"
        )
    holder = last_holder(layout)
    verb = "pull" if holder is not None and holder.purpose == "pull" else "ingest"
    if holder is not None and holder.runs:
        return DatabaseNotReadyError(
            f"{root} is still being {verb}ed by process {holder.pid} and has nothing to read yet: "
            "wait for it"
        )
    unless = f", unless {holder} still runs" if holder is not None and holder.runs is None else ""
    return DatabaseNotReadyError(
        f"{root} holds an unfinished {verb} and nothing to read yet{unless}: run the same "
        f"`featuredb {verb}` again to continue it, or delete the folder to give it up"
    )


def snapshot_numbers(layout: Layout) -> list[int]:
    """The numbers of the snapshots on the disk, ascending. One newer than the live one
    belongs to a publication in progress or killed."""
    names = (path.name for path in layout.snapshots.glob("*.json"))
    return sorted(int(name[:-5]) for name in names if _SNAPSHOT.fullmatch(name))


def kept_numbers(layout: Layout) -> list[int]:
    """The numbers of the published snapshots that are kept, ascending. Of all on the disk where
    ``CURRENT`` names none of them."""
    numbers = snapshot_numbers(layout)
    try:
        live = int(read_pointer(layout).name)
    except (OSError, DatabaseError):
        return numbers
    return [number for number in numbers if number <= live or live not in numbers]


def kept_snapshots(layout: Layout, *, skip_damaged: bool = False) -> list[Snapshot]:
    """The published snapshots that no vacuum removed, by number. Nothing where none was published.

    Args:
        layout: The database.
        skip_damaged: Leave out what cannot be read, instead of raising.

    Returns:
        The snapshots, the live one last.

    Raises:
        CorruptDatabaseError: A snapshot cannot be read.
    """
    snapshots = []
    for number in kept_numbers(layout):
        try:
            snapshots.append(read_snapshot(layout, number))
        except CorruptDatabaseError:
            if not skip_damaged:
                raise
    return snapshots


def _listed(numbers: Sequence[int]) -> str:
    """``3, 5 to 8`` for 3, 5, 6, 7 and 8."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans) or "none"


def read_remote_snapshot(remote: RemoteFiles, number: int | None = None) -> Snapshot:
    """Read the live snapshot of a database behind a URL, or an older one. Two requests.

    Args:
        remote: Where the database is. It gets the sizes of its files.
        number: The snapshot's number, None for the live one.

    Returns:
        The snapshot.

    Raises:
        DatabaseError: As `read_snapshot`.
        RemoteError: The server cannot be reached or refuses.
    """
    snapshot = read_remote_raw(remote, number)[2]
    remote.learn(snapshot)
    return snapshot


def read_remote_raw(
    remote: RemoteFiles, number: int | None = None
) -> tuple[Pointer, bytes, Snapshot]:
    """A snapshot's name and checksum, its bytes, and these decoded.

    Raises as `read_remote_snapshot`.
    """
    try:
        pointer = _remote_pointer(remote)
    except FileNotFoundError as error:
        raise _nothing_pushed(remote, error) from None
    try:
        live = _remote_bytes(remote, pointer)
    except CorruptDatabaseError as error:
        # Where the URL is a folder in use, it may have been vacuumed since it was named.
        if not isinstance(error.__cause__, FileNotFoundError) or _remote_pointer(remote) == pointer:
            raise
        return read_remote_raw(remote, number)
    if number is None or live[2].number == number:
        return live
    name = f"{number:06d}"
    checksums = {file.path: file.sha256 for file in live[2].older}
    try:
        return _remote_bytes(remote, Pointer(name, checksums.get(_snapshot_path(name))))
    except CorruptDatabaseError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise DatabaseNotFoundError(
            f"{remote} has no snapshot {number}; its newest is {live[2].number}"
        ) from error


def _remote_bytes(remote: RemoteFiles, pointer: Pointer) -> tuple[Pointer, bytes, Snapshot]:
    path = _snapshot_path(pointer.name)
    try:
        raw = remote.get_small(path, 1 << 30)
    except FileNotFoundError as error:
        raise CorruptDatabaseError(
            f"the snapshot {remote / path} is not there: `featuredb push` the database again"
        ) from error
    return pointer, raw, decode_snapshot(raw, pointer, remote / path, remote.url)


def _snapshot_path(name: str) -> str:
    return f"snapshots/{name}.json"


def _remote_pointer(remote: RemoteFiles) -> Pointer:
    """The pointer in the server's ``CURRENT``. Raises FileNotFoundError."""
    try:
        return Pointer.parse(remote.get_small("CURRENT", 256))
    except ValueError as error:
        # A server of web pages answers everything with something.
        raise DatabaseNotFoundError(
            f"{remote} is not a featuredb database (its CURRENT file cannot be read: {error}): "
            "check the URL"
        ) from error


def _nothing_pushed(remote: RemoteFiles, error: FileNotFoundError) -> FeatureDBError:
    if "bucket" in str(error):
        return DatabaseNotFoundError(f"{remote}: {error}: check the URL, and the endpoint if any")
    try:
        remote.get_small(PUSHING, 1)
    except (FileNotFoundError, RemoteError):
        return DatabaseNotFoundError(
            f"there is no featuredb database at {remote} (it has no CURRENT file): check the URL, "
            "or copy one there with `featuredb push`"
        )
    return DatabaseNotReadyError(
        f"{remote} is still being pushed and has nothing to read yet: wait for it, or run the "
        "same `featuredb push` again to continue it"
    )
