"""Telling a URL of a database from a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featuredb.errors import StorageError

# A letter of a drive is no scheme, and a chain such as simplecache::s3:// is one.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*://")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names a place for fsspec, as ``s3://bucket/my.fdb`` does."""
    return isinstance(path, str) and _SCHEME.match(path) is not None


def local_folder(path: str | os.PathLike[str], doing: str) -> Path:
    """`path` as a folder of this machine. Raises `StorageError` when it is a URL.

    doing: what was asked for, as the message says it.
    """
    if is_url(path):
        raise StorageError(
            f"{path} is a URL, and {doing} needs a folder: databases are written on a local disk "
            "and copied with `featuredb push` and `featuredb pull`"
        )
    return Path(path)
