"""Write lock of a database, released when its process exits."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from featuredb.errors import DatabaseLockedError, StorageError
from featuredb.store.files.atomic import fsync_path, missing_folders, storage_errors
from featuredb.store.layout import Layout


class Holder(NamedTuple):
    """Who holds the lock, or was the last to hold it. pid, host: None once it is released."""

    purpose: str
    pid: int | None = None
    host: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.purpose})"

    @property
    def runs(self) -> bool | None:
        """Whether it still holds the lock. None if it may, on another machine."""
        if self.pid is None:
            return False
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        return True


def last_holder(layout: Layout) -> Holder | None:
    """The last writer by its note in the lock file, None if there is none.

    Does not try the lock: that would refuse a writer that starts at the same moment.
    """
    try:
        return _holder(layout.lock.read_bytes())
    except OSError:
        return None


@contextmanager
def write_lock(layout: Layout, purpose: str) -> Iterator[None]:
    """Hold the database's write lock while the block runs.

    The operating system releases the lock when the process exits, so stale locks need no cleanup.
    The text in the file only names the holder.

    Raises `DatabaseLockedError` naming the holder if another process is writing.
    """
    handle = _open_locked(layout)
    try:
        _write_note(handle, Holder(purpose, os.getpid(), socket.gethostname()))
        yield
    finally:
        _write_note(handle, Holder(purpose))
        os.close(handle)


def _write_note(handle: int, holder: Holder) -> None:
    # On a full disk this fails, which must not stop a vacuum from freeing space.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder._asdict()).encode(), 0)


def _open_locked(layout: Layout) -> int:
    """The lock file, open and locked."""
    while True:
        with storage_errors(layout.root):
            try:
                _make_folder(layout.root)
            except FileNotFoundError as error:  # such as below /proc
                raise StorageError(
                    f"there can be no folder {layout.root}: give another path"
                ) from error
            handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A refused writer removes its file, possibly after this process opened it.
            if _is_still(layout, handle):
                return handle
        except BlockingIOError:
            holder = _holder(os.pread(handle, 4096, 0)) or "another process"
            os.close(handle)
            raise DatabaseLockedError(
                f"{layout.root} is being written by {holder}: wait for it to finish, or stop it"
            ) from None
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, and flush the parents of the new ones. Otherwise a power
    failure could lose the folder with all data flushed into it."""
    missing = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        fsync_path(place.parent)


def _is_still(layout: Layout, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(layout.lock), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder(note: bytes) -> Holder | None:
    try:
        holder = Holder(**json.loads(note))
    except (ValueError, TypeError):
        return None
    known = isinstance(holder.pid, int | None) and isinstance(holder.purpose, str)
    return holder if known else None
