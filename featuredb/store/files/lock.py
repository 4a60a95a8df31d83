"""Write lock of a database, released when its process exits."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featuredb.errors import DatabaseLockedError
from featuredb.store.files.atomic import fsync_path, missing_folders, storage_errors
from featuredb.store.layout import Layout


@contextmanager
def write_lock(layout: Layout, purpose: str) -> Iterator[None]:
    """Hold the database's write lock while the block runs.

    The operating system releases the lock when the process exits, so stale locks need no cleanup.
    The text in the file only names the holder.

    Raises `DatabaseLockedError` naming the holder if another process is writing.
    """
    handle = _open_locked(layout)
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose}
        # On a full disk this fails, which must not stop a vacuum from freeing space.
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(handle)


def _open_locked(layout: Layout) -> int:
    """The lock file, open and locked."""
    while True:
        with storage_errors(layout.root):
            _make_folder(layout.root)
            handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A refused writer removes its file, possibly after this process opened it.
            if _is_still(layout, handle):
                return handle
        except BlockingIOError:
            holder = _holder(handle)
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


def _holder(handle: int) -> str:
    try:
        note = json.loads(os.pread(handle, 4096, 0))
        return f"process {note['pid']} on {note['host']} ({note['purpose']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
