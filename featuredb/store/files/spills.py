"""Where SQL puts what does not fit its memory: a private folder, apart from every database."""

from __future__ import annotations

import os
import threading
import uuid
from multiprocessing import util
from pathlib import Path

from featuredb.store.files.scratch import OwnFolder

_lock = threading.Lock()
_made: dict[int, OwnFolder] = {}
"""The folder of this process, by its id: one that was forked has its own."""


def spill_folder() -> Path | None:
    """A path for DuckDB to make a folder at when it needs one, and to remove with its database.

    It is below a folder that only this user can read, which goes when the process ends; what a
    killed one left goes when the next one makes its own. None where no temporary folder can be
    made.
    """
    process = os.getpid()
    with _lock:
        if process not in _made:
            folder = OwnFolder("featuredb-sql-")
            try:
                folder.folder  # noqa: B018  made now, or refused
            except OSError:
                return None
            _made[process] = folder
            # Also at the end of a worker of multiprocessing, which `atexit` does not hear of.
            util.Finalize(None, remove_spills, exitpriority=0)
        return _made[process].folder / uuid.uuid4().hex


def remove_spills() -> None:
    """Remove what this process has spilled: for an end that nothing else follows."""
    folder = _made.pop(os.getpid(), None)
    if folder is not None:
        folder.remove()
