"""Temporary folders that do not outlive their process for long, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from time import time as seconds_now

_SETTLING_S = 60.0
"""A folder younger than this may belong to a process that has not locked it yet."""


class OwnFolder:
    """A temporary folder, made when it is asked for and gone with its process.

    `remove` deletes it. What a killed process left behind is deleted by the next one that makes
    a folder of the same prefix: a living one holds a lock.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._folder: Path | None = None
        self._lock = -1

    @property
    def folder(self) -> Path:
        """The folder. Raises `OSError` where none can be made."""
        if self._folder is None:
            _sweep(Path(tempfile.gettempdir()), self._prefix)
            self._folder = Path(tempfile.mkdtemp(prefix=self._prefix))
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            # Where the file system has no locks nothing is ever swept.
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._folder

    def remove(self) -> None:
        """Delete the folder, if there is one."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None


def _sweep(place: Path, prefix: str) -> None:
    """Delete the folders in `place` whose processes are gone."""
    for folder in place.glob(f"{prefix}*"):
        try:
            if seconds_now() - folder.stat().st_mtime < _SETTLING_S:
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue  # another's, or just gone
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # a living one's, or nothing can be locked here
        finally:
            os.close(lock)
