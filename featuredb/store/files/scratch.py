"""Temporary folders outside every database, cleaned up after killed processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time as seconds_now

_SETTLING_S = 60.0
"""A folder younger than this may belong to a process that has not locked it yet."""


class ScratchFolder:
    """A temporary folder, made on first use and removed with `remove`.

    Its process holds a lock in it. A folder whose process was killed is deleted by the next
    process that makes one with the same prefix.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._folder: Path | None = None
        self._lock = -1

    @property
    def folder(self) -> Path:
        """The folder. Raises `OSError` where none can be made."""
        if self._folder is None:
            _remove_orphans(Path(tempfile.gettempdir()), self._prefix)
            self._folder = Path(tempfile.mkdtemp(prefix=self._prefix))
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            # Where the file system has no locks nothing is ever swept.
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._folder

    def remove(self) -> None:
        """Delete the folder, if it exists."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for the length of a block. Raises `OSError` where none can be made."""
    scratch = ScratchFolder("featuredb-scratch-")
    try:
        yield scratch.folder
    finally:
        scratch.remove()


_spill_lock = threading.Lock()
_spill_folders: dict[int, ScratchFolder] = {}
"""The spill folder of this process, by its id: a forked process has its own."""


def spill_folder() -> Path | None:
    """A path at which DuckDB may make a folder to spill to.

    DuckDB removes it with its database. Its parent can only be read by this user and is
    removed when the process ends. None if no temporary folder can be made.
    """
    # Imported here: most commands spill nothing.
    from multiprocessing import util

    process = os.getpid()
    with _spill_lock:
        if process not in _spill_folders:
            scratch = ScratchFolder("featuredb-sql-")
            try:
                scratch.folder  # noqa: B018  made now, or refused
            except OSError:
                return None
            _spill_folders[process] = scratch
            # Also at the end of a worker of multiprocessing, for which `atexit` does not run.
            util.Finalize(None, remove_spills, exitpriority=0)
        return _spill_folders[process].folder / uuid.uuid4().hex


def remove_spills() -> None:
    """Remove this process's spilled files, for an exit that skips the usual cleanup."""
    scratch = _spill_folders.pop(os.getpid(), None)
    if scratch is not None:
        scratch.remove()


def _remove_orphans(place: Path, prefix: str) -> None:
    """Delete the folders in `place` of processes that have ended."""
    for folder in place.glob(f"{prefix}*"):
        try:
            if seconds_now() - folder.stat().st_mtime < _SETTLING_S:
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue  # another user's, or just removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # in use, or nothing can be locked here
        finally:
            os.close(lock)
