"""Copying a database to a URL and back: only what the other side lacks, in an order that is safe.

A reader of either side sees the snapshot before or the one after, as ``CURRENT`` comes last. A
file counts as there when its size is right and a snapshot of that side (or the note of a push that
was interrupted) lists it with the same SHA-256; of local files the SHA-256 is computed instead.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
)
from featuredb.files import (
    fsync_path,
    sha256_of,
    storage_errors,
    sweep,
    temporary_name,
    write_atomically,
)
from featuredb.layout import Layout
from featuredb.lock import write_lock
from featuredb.pointer import Pointer
from featuredb.remote import PUSHING, Remote, read_remote_raw, remote_errors
from featuredb.snapshot import File, Snapshot, decode_snapshot, read_pointer, read_snapshot

_AT_ONCE = 8
"""Files under way at the same time."""

_FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"}
"""Schemes of stores that have no folders to make."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Transfer:
    """What a push or a pull did. files and bytes: copied; skipped: files that were there."""

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
    """The snapshot to copy, with the bytes that make it live.

    unlisted: files the snapshot does not list but needs, with their sizes: LanceDB's own and the
    catalog in format 1.
    """

    snapshot: Snapshot
    pointer: Pointer
    raw: bytes
    unlisted: Mapping[str, int]

    @property
    def name(self) -> str:
        return f"snapshots/{self.pointer.name}.json"

    @property
    def files(self) -> list[File]:
        return list({file.path: file for file in self.snapshot.files()}.values())

    def last(self, there: Callable[[str], int | None]) -> list[File]:
        """What no SHA-256 tells to be the same, so that it is copied every time.

        there: the size that a file has on the other side, None without. LanceDB's data files have
        names that are never used again, so there the size does tell.
        """
        catalog = self.snapshot.catalog
        listed = [] if catalog is None else [catalog]
        # LanceDB writes data first and what names it afterwards; so is it copied.
        names = sorted(self.unlisted, key=lambda name: ("/data/" not in name, name))
        wanted = [n for n in names if "/data/" not in n or there(n) != self.unlisted[n]]
        return [File(name, 0, self.unlisted[name], "") for name in wanted] + listed


def push(folder: Path, remote: Remote, report: Report | None = None) -> Transfer:
    """Copy the live snapshot of the database in `folder` to a URL; see `featuredb.push`."""
    layout = Layout(folder.expanduser().absolute())
    source = _local_source(layout)
    there = remote.find()
    live = _remote_snapshot(remote)
    _check_line(source, live, str(layout.root), str(remote))
    noted = _note(remote)
    known = _listed([s for s in (live, noted) if s is not None])
    same, differing, absent = [], [], []
    for file in source.files:
        if there.get(file.path) is None:
            absent.append(file)
        elif there[file.path] == file.bytes and known.get(file.path) == {file.sha256}:
            same.append(file)
        else:
            differing.append(file)
    copy = _Copying(lambda file: _upload(layout, remote, file), report)
    last = source.last(there.get)
    copy.expect([*differing, *absent, *last])
    if noted is not None and noted != source.snapshot:
        _remove_note(remote)  # it vouches for files that are about to change
    copy.all(differing)
    # From here on every listed file that is there is one of this snapshot: another push may
    # rely on it.
    _put(remote, PUSHING, source.raw)
    copy.all(absent)
    copy.each(last)
    _put(remote, source.name, source.raw)
    _put(remote, "CURRENT", source.pointer.line())
    _remove_note(remote)
    return Transfer(source.snapshot.number, copy.files, copy.bytes, len(same))


def pull(remote: Remote, folder: Path, report: Report | None = None) -> Transfer:
    """Copy the live snapshot of the database at a URL to `folder`; see `featuredb.pull`."""
    layout = Layout(folder.expanduser().absolute())
    source = _remote_source(remote)
    with write_lock(layout, "pull"), storage_errors(layout.root):
        if layout.staging.is_dir():
            raise DatabaseError(
                f"{layout.root} has an unfinished ingest: finish it, or pull to another folder"
            )
        live = _local_snapshot(layout)
        _check_line(source, live, str(remote), str(layout.root))
        known = _listed([live] if live is not None else [])
        last = source.last(lambda name: _size_if_there(layout.root / name))
        for parent in {(layout.root / f.path).parent for f in (*source.files, *last)}:
            sweep(parent)
        missing = [file for file in source.files if not _is_there(layout, file, known)]
        copy = _Copying(lambda file: _download(layout, remote, file), report)
        copy.expect([*missing, *last])
        copy.all(missing)
        copy.each(last)
        write_atomically(layout.root / source.name, source.raw)
        write_atomically(layout.current, source.pointer.line())
        skipped = len(source.files) - len(missing)
    return Transfer(source.snapshot.number, copy.files, copy.bytes, skipped)


class _Copying:
    """Copies files, several at once, and counts."""

    def __init__(self, copy: Callable[[File], int], report: Report | None) -> None:
        """copy: copies one file and says how many bytes it was."""
        self.files = 0
        self.bytes = 0
        self._copy = copy
        self._report = report
        self._total = 0
        self._lock = threading.Lock()

    def expect(self, files: Iterable[File]) -> None:
        self._total = sum(file.bytes for file in files)
        self._tell()

    def all(self, files: Sequence[File]) -> None:
        """In any order. The first failure stops what has not begun, and is raised."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            under_way = [threads.submit(self._one, file) for file in files]
            try:
                for done in under_way:
                    done.result()
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def each(self, files: Sequence[File]) -> None:
        """One after the other."""
        for file in files:
            self._one(file)

    def _one(self, file: File) -> None:
        size = self._copy(file)
        with self._lock:
            self.files += 1
            self.bytes += size
            self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self.bytes, self._total)


def _local_source(layout: Layout) -> _Source:
    read_snapshot(layout)  # says what is wrong where there is none
    pointer = read_pointer(layout)
    path = layout.snapshots / f"{pointer.name}.json"
    raw = path.read_bytes()
    snapshot = decode_snapshot(raw, pointer, str(path), str(layout.root))
    unlisted: dict[str, int] = {}
    for vectors in snapshot.vectors:
        if not vectors.files:
            table = layout.vectors / f"{vectors.table}.lance"
            unlisted |= {layout.relative(p): _size(p) for p in table.rglob("*") if p.is_file()}
    if snapshot.catalog is None and layout.catalog.is_file():
        unlisted[layout.relative(layout.catalog)] = _size(layout.catalog)
    return _Source(snapshot, pointer, raw, unlisted)


def _remote_source(remote: Remote) -> _Source:
    pointer, raw, snapshot = read_remote_raw(remote)
    unlisted: dict[str, int] = {}
    for vectors in snapshot.vectors:
        if not vectors.files:
            unlisted |= remote.find(f"vectors.lance/{vectors.table}.lance")
    if snapshot.catalog is None:
        unlisted |= remote.find("catalog.duckdb")
    return _Source(snapshot, pointer, raw, unlisted)


def _remote_snapshot(remote: Remote) -> Snapshot | None:
    try:
        return read_remote_raw(remote)[2]
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None


def _local_snapshot(layout: Layout) -> Snapshot | None:
    try:
        return read_snapshot(layout)
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None


def _check_line(source: _Source, live: Snapshot | None, origin: str, target: str) -> None:
    """Raises `DatabaseError` unless `live`, what the target has, is an earlier state of this."""
    if live is None:
        return
    ours = source.snapshot
    same = live.number != ours.number or live == ours
    if not same or live.runs[:1] != ours.runs[:1]:
        raise DatabaseError(
            f"{target} holds another database than {origin}: copy to another place, or delete "
            "that one first"
        )
    if live.number > ours.number:
        raise DatabaseError(
            f"{target} has snapshot {live.number}, which is newer than {ours.number} in {origin}: "
            "copy the other way"
        )


def _listed(snapshots: Iterable[Snapshot]) -> dict[str, set[str]]:
    """Path to the SHA-256 that snapshots give it."""
    listed: dict[str, set[str]] = defaultdict(set)
    for snapshot in snapshots:
        for file in snapshot.files():
            listed[file.path].add(file.sha256)
    return listed


def _note(remote: Remote) -> Snapshot | None:
    """The snapshot that a push was copying when it was interrupted."""
    try:
        raw = remote.get_small(PUSHING, 1 << 30)
        return msgspec.json.decode(raw, type=Snapshot)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _remove_note(remote: Remote) -> None:
    with remote_errors(remote.url):
        remote.fs.rm_file(remote.below(PUSHING))


def _upload(layout: Layout, remote: Remote, file: File) -> int:
    path = layout.root / file.path
    try:
        if file.sha256 and sha256_of(path) != file.sha256:
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
def _writing(remote: Remote) -> Iterator[None]:
    """Errors of writing to the other side: what is missing there is the bucket."""
    try:
        with remote_errors(remote.url):
            yield
    except FileNotFoundError as error:
        raise DatabaseNotFoundError(
            f"{remote} cannot be written ({error}): make the bucket or folder first"
        ) from error


def _put(remote: Remote, path: str, data: bytes) -> None:
    with _writing(remote):
        _make_folder(remote, path)
        remote.fs.pipe_file(remote.below(path), data)


def _make_folder(remote: Remote, path: str) -> None:
    if remote.scheme not in _FLAT:
        remote.fs.makedirs(remote.below(path).rpartition("/")[0], exist_ok=True)


def _is_there(layout: Layout, file: File, known: Mapping[str, set[str]]) -> bool:
    path = layout.root / file.path
    if _size_if_there(path) != file.bytes:
        return False
    return known.get(file.path) == {file.sha256} or sha256_of(path) == file.sha256


def _download(layout: Layout, remote: Remote, file: File) -> int:
    path = layout.root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with storage_errors(path):
            remote.download(file.path, temporary)
        size = _size(temporary)
        if size != file.bytes or (file.sha256 and sha256_of(temporary) != file.sha256):
            raise CorruptDatabaseError(
                f"{remote / file.path} arrived otherwise than its snapshot lists it (size or "
                "SHA-256): pull again; if it stays so, push that database again"
            )
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
    return size


def _size_if_there(path: Path) -> int | None:
    return _size(path) if path.is_file() else None


def _size(path: Path) -> int:
    return path.stat().st_size
