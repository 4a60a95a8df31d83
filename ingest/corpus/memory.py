"""Documents that exist only once, in Python or on standard input, written to a temporary file.

A corpus is read several times (for its types, its hash and its documents), so that what can be
read once is kept on disk for as long as the corpus is.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from pathlib import Path
from time import time as seconds_now
from typing import Any, BinaryIO

import numpy as np

from featuredb.errors import CorpusError

_PREFIX = "featuredb-corpus-"
_SETTLING_S = 60.0
"""A folder younger than this may belong to a process that has not locked it yet."""


class Spool:
    """A temporary folder, made when it is asked for and gone with its process.

    `remove` deletes it. What a killed process left behind is deleted by the next one that makes
    such a folder: a living one holds a lock.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock = -1

    @property
    def folder(self) -> Path:
        """The folder."""
        if self._folder is None:
            _sweep(Path(tempfile.gettempdir()))
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._folder

    def remove(self) -> None:
        """Delete the folder, if there is one."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None


def _sweep(place: Path) -> None:
    """Delete the folders in `place` whose processes are gone."""
    for folder in place.glob(f"{_PREFIX}*"):
        try:
            if seconds_now() - folder.stat().st_mtime < _SETTLING_S:
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue  # another's, or just gone
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def spool_documents(documents: Iterable[Any], folder: Path, column: str) -> Path:
    """Write strings (as `column`), mappings and None to a JSON Lines file in `folder`.

    Raises:
        CorpusError: an element or a value is of another type, or cannot be written as UTF-8.
    """
    path = folder / "documents.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, document in enumerate(documents):
            if isinstance(document, Mapping):
                record = dict(document)
            elif document is None or isinstance(document, str):
                record = {column: document}
            else:
                raise CorpusError(
                    f"document {number} is a {type(document).__name__}; "
                    f"give strings, or mappings from column names to values"
                )
            try:
                file.write(json.dumps(record, ensure_ascii=False, default=_plain) + "\n")
            except (TypeError, ValueError) as error:
                # UnicodeEncodeError, for half of a surrogate pair, is a ValueError.
                raise CorpusError(f"document {number} cannot be kept as JSON: {error}") from error
    return path


def spool_stream(stream: BinaryIO, folder: Path) -> Path:
    """Write everything that `stream` has to a file in `folder`."""
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a value is a {type(value).__name__}")
