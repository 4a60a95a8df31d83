"""Upload a database to a URL and download it, skipping existing files.

Readers see the snapshot before or the one after, because ``CURRENT`` is written last. A file is
skipped when its size matches and a snapshot of the target (or the note of an interrupted push)
lists it with the same SHA-256. For other local files the SHA-256 is computed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

import msgspec

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    UnfinishedError,
)
from featuredb.store.current import Pointer
from featuredb.store.files.atomic import (
    fsync_path,
    remove_tree,
    sha256_of,
    storage_errors,
    sweep,
    temporary_name,
    write_atomically,
)
from featuredb.store.files.fsspec_errors import remote_errors
from featuredb.store.files.remote import RemoteFiles
from featuredb.store.history import (
    PUSHING,
    finish_publication,
    kept_snapshots,
    read_raw,
    read_remote_raw,
    snapshot_numbers,
)
from featuredb.store.layout import Layout
from featuredb.store.new_database import beginning
from featuredb.store.snapshot import File, Snapshot
from featuredb.transfer.copying import Copying, Report
from featuredb.transfer.lineage import State, file_that_differs, refuse_another_line

_FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"}
"""Schemes of object stores, which have no folders to create."""


@dataclass(frozen=True)
class Transfer:
    """Result of a push or pull: files and bytes copied, and existing files skipped."""

    snapshot: int
    files: int
    bytes: int
    skipped: int

    def __str__(self) -> str:
        return (
            f"snapshot {self.snapshot}: {self.files:,} files copied ({self.bytes:,} bytes), "
            f"{self.skipped:,} were there already"
        )


@dataclass(frozen=True)
class _Source:
    """The snapshot to copy, its bytes and its pointer."""

    snapshot: Snapshot
    pointer: Pointer
    raw: bytes

    @property
    def name(self) -> str:
        return f"snapshots/{self.pointer.name}.json"

    @property
    def state(self) -> State:
        return _state(self.raw, self.snapshot)

    @property
    def files(self) -> list[File]:
        return list({file.path: file for file in self.snapshot.files()}.values())

    @property
    def last(self) -> list[File]:
        """The catalog, always copied last."""
        return [] if self.snapshot.catalog is None else [self.snapshot.catalog]


def push(folder: Path, remote: RemoteFiles, report: Report | None = None) -> Transfer:
    """Copy the live snapshot of the database in `folder` to a URL. See `featuredb.push`."""
    layout = Layout(folder.expanduser().absolute())
    source = _local_source(layout)
    existing = remote.find()
    live = _remote_state(remote)
    if live is not None:
        refuse_another_line(source.state, live, str(layout.root), str(remote))
    noted = _note(remote)
    published = None if live is None else live.snapshot
    known = _listed([s for s in (published, noted) if s is not None])
    same, differing, absent = [], [], []
    for file in source.files:
        if existing.get(file.path) is None:
            absent.append(file)
        elif existing[file.path] == file.bytes and known.get(file.path) == {file.sha256}:
            same.append(file)
        else:
            differing.append(file)
    copy = Copying(lambda file: _upload(layout, remote, file), report)
    last = source.last
    copy.expect([*differing, *absent, *last])
    if noted is not None and noted != source.snapshot:
        _remove_note(remote)  # it lists files that are about to change
    copy.all(differing)
    # From here on every existing listed file belongs to this snapshot, so another push can
    # skip it.
    _put(remote, PUSHING, source.raw)
    copy.all(absent)
    _put(remote, source.name, source.raw)  # before the catalog, as in `pull`
    copy.each(last)
    _put(remote, "CURRENT", source.pointer.line())
    _remove_note(remote)
    return Transfer(source.snapshot.number, copy.files, copy.bytes, len(same))


def pull(remote: RemoteFiles, folder: Path, report: Report | None = None) -> Transfer:
    """Copy the live snapshot of the database at a URL to `folder`. See `featuredb.pull`."""
    layout = Layout(folder.expanduser().absolute())
    source = _remote_source(remote)
    with beginning(layout, "pull", DatabaseError, _take_back):
        finish_publication(layout)
        if (layout.staging / "plan.json").exists():
            raise UnfinishedError(
                f"{layout.root} has an unfinished ingest: finish it, or pull to another folder"
            )
        live = _local_state(layout)
        if live is not None:
            refuse_another_line(source.state, live, str(remote), str(layout.root))
        retained = [] if live is None else kept_snapshots(layout, skip_damaged=True)
        _refuse_overwriting(source.snapshot, retained, layout)
        _forget_unpublished(layout, live)
        last = source.last
        for parent in {(layout.root / f.path).parent for f in (*source.files, *last)}:
            sweep(parent)
        known = _listed(retained)
        missing = [file for file in source.files if not _exists(layout, file, known)]
        copy = Copying(lambda file: _download(layout, remote, file), report)
        copy.expect([*missing, *last])
        copy.all(missing)
        _flush_folders(layout, source.files)
        # Before the catalog, as in every publication: after a kill between the two, the next
        # writer detects that the catalog belongs to a snapshot to finish.
        write_atomically(layout.root / source.name, source.raw)
        copy.each(last)
        _flush_folders(layout, last)
        write_atomically(layout.current, source.pointer.line())
        skipped = len(source.files) - len(missing)
    return Transfer(source.snapshot.number, copy.files, copy.bytes, skipped)


def _local_source(layout: Layout) -> _Source:
    pointer, raw, snapshot = read_raw(layout)
    return _Source(snapshot, pointer, raw)


def _remote_source(remote: RemoteFiles) -> _Source:
    pointer, raw, snapshot = read_remote_raw(remote)
    return _Source(snapshot, pointer, raw)


def _remote_state(remote: RemoteFiles) -> State | None:
    try:
        _, raw, snapshot = read_remote_raw(remote)
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None
    return _state(raw, snapshot)


def _local_state(layout: Layout) -> State | None:
    try:
        _, raw, snapshot = read_raw(layout)
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None
    return _state(raw, snapshot)


def _state(raw: bytes, snapshot: Snapshot) -> State:
    return State(snapshot, sha256(raw).hexdigest())


def _refuse_overwriting(ours: Snapshot, retained: Iterable[Snapshot], layout: Layout) -> None:
    """Raises `DatabaseError` if a file to copy would overwrite a different file that a retained
    snapshot still references."""
    for snapshot in retained:
        path = file_that_differs(snapshot, ours)
        if path is not None:
            raise DatabaseError(
                f"{layout.root} keeps snapshot {snapshot.number}, whose {path} is another: remove "
                "it with `featuredb vacuum`, or pull to another folder"
            )


def _forget_unpublished(layout: Layout, live: State | None) -> None:
    """Remove snapshots that were never live, which would otherwise count as retained."""
    for number in snapshot_numbers(layout):
        if live is None or number > live.snapshot.number:
            layout.snapshot(number).unlink()


def _take_back(layout: Layout) -> None:
    """Clean up if nothing was copied, so that the folder is not taken for a database."""
    parts = [p for p in layout.root.iterdir() if not p.name.startswith(".") and p != layout.lock]
    if not any(path.is_file() for part in parts for path in (part, *part.rglob("*"))):
        for part in (*parts, layout.lock):
            remove_tree(part)


def _listed(snapshots: Iterable[Snapshot]) -> dict[str, set[str]]:
    """Map each path to the SHA-256 values that snapshots list for it."""
    listed: dict[str, set[str]] = defaultdict(set)
    for snapshot in snapshots:
        for file in snapshot.files():
            listed[file.path].add(file.sha256)
    return listed


def _note(remote: RemoteFiles) -> Snapshot | None:
    """The snapshot of an interrupted push."""
    try:
        raw = remote.get_small(PUSHING, 1 << 30)
        return msgspec.json.decode(raw, type=Snapshot)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _remove_note(remote: RemoteFiles) -> None:
    with remote_errors(remote.url):
        remote.fs.rm_file(remote.below(PUSHING))


def _upload(layout: Layout, remote: RemoteFiles, file: File) -> int:
    path = layout.root / file.path
    try:
        if sha256_of(path) != file.sha256:
            raise CorruptDatabaseError(
                f"{path} is not what its snapshot lists (SHA-256): if it changed just now, push "
                "again; else run `featuredb verify`"
            )
        size = _size(path)
        with _writing(remote):
            _make_folder(remote, file.path)
            remote.fs.put_file(str(path), remote.below(file.path))
    except FileNotFoundError as error:
        raise CorruptDatabaseError(
            f"{path} is missing: if a newer snapshot was published just now, push again; else "
            "run `featuredb verify`"
        ) from error
    return size


@contextmanager
def _writing(remote: RemoteFiles) -> Iterator[None]:
    """Translate errors of remote writes. A missing file means a missing bucket."""
    try:
        with remote_errors(remote.url):
            yield
    except FileNotFoundError as error:
        raise DatabaseNotFoundError(
            f"{remote} cannot be written ({error}): make the bucket or folder first"
        ) from error


def _put(remote: RemoteFiles, path: str, data: bytes) -> None:
    with _writing(remote):
        _make_folder(remote, path)
        remote.fs.pipe_file(remote.below(path), data)


def _make_folder(remote: RemoteFiles, path: str) -> None:
    if remote.scheme not in _FLAT:
        remote.fs.makedirs(remote.below(path).rpartition("/")[0], exist_ok=True)


def _exists(layout: Layout, file: File, known: Mapping[str, set[str]]) -> bool:
    path = layout.root / file.path
    if _size_if_there(path) != file.bytes:
        return False
    return known.get(file.path) == {file.sha256} or sha256_of(path) == file.sha256


def _download(layout: Layout, remote: RemoteFiles, file: File) -> int:
    path = layout.root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with storage_errors(path):
            remote.download(file.path, temporary)
        size = _size(temporary)
        if size != file.bytes or sha256_of(temporary) != file.sha256:
            raise CorruptDatabaseError(
                f"{remote / file.path} arrived otherwise than its snapshot lists it (size or "
                "SHA-256): pull again; if it stays so, push that database again"
            )
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _flush_folders(layout: Layout, files: Iterable[File]) -> None:
    """Flush the parent folders of files, which may be new or from an interrupted pull."""
    for folder in {folder for file in files for folder in PurePosixPath(file.path).parents}:
        fsync_path(layout.root / folder)


def _size_if_there(path: Path) -> int | None:
    return _size(path) if path.is_file() else None


def _size(path: Path) -> int:
    return path.stat().st_size
