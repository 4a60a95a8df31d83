"""Writing so that a crash leaves the old file or the new one, never half of one.

The order everywhere: write under a temporary name, flush to the disk, rename, flush the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featuredb.errors import FeatureDBError, StorageError, first_line

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHORT_WRITE = re.compile(r"No space left|File too large|\d+ requested and \d+ written")
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn the operating system's write errors into a `StorageError`."""
    try:
        yield
    except FeatureDBError:
        raise
    except Exception as error:  # DuckDB and LanceDB raise their own classes
        refused = refusal(error, where)
        if refused is None:
            raise
        raise refused from error


@contextmanager
def output_in_place(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, for a file or a folder that gets the name at the end.

    A link is followed. A pipe or a device, such as /dev/stdout, is `path` itself.

    Raises `StorageError` where it cannot be written. Nothing is left then.
    """
    # Of os.path: a name that is too long is no error here, only where it is written.
    special = os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
    target = path.resolve() if os.path.islink(path) and not special else path
    temporary = path if special else temporary_name(target.absolute())
    try:
        yield temporary
        if not special:
            temporary.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or first_line(error)}") from error
    finally:
        if not special:
            remove_tree(temporary)


def refusal(error: Exception, where: Path) -> StorageError | None:
    """The `StorageError` for a full disk or a missing permission, None for anything else.

    pyarrow raises a plain OSError with the number only in its message, numpy one with the bytes
    written, and DuckDB and LanceDB their own errors. So the text is tested.
    """
    text = str(error)
    number = getattr(error, "errno", None)
    if number in _NO_ROOM or _SHORT_WRITE.search(text):
        return StorageError(
            f"no space left on the disk while writing {where}: "
            "free some and run the same command again, it continues where it stopped"
        )
    if number in _NO_RIGHT or "Permission denied" in text or "Read-only file system" in text:
        return StorageError(f"no permission to write {where}: choose a folder you can write to")
    return None


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Flush every file below `folder`, then every folder, deepest first."""
    for current, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_path(Path(current, name))
        fsync_path(Path(current))


def temporary_name(path: Path) -> Path:
    """A sibling of `path` that readers ignore. `sweep` removes leftovers."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def missing_folders(path: Path) -> list[Path]:
    """`path` and the folders above it that do not exist, deepest first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing


def write_atomically(path: Path, data: bytes, *, make_folder: bool = True) -> None:
    """Write `data` to `path` in one step.

    Args:
        path: The file to create or replace.
        data: All of its bytes.
        make_folder: Create its folder where it is missing, instead of raising.

    Raises:
        StorageError: The file system refused.
    """
    with storage_errors(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            with open(temporary, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


@contextmanager
def folder_in_place(final: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name. On success it is flushed and renamed to `final`."""
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(final)
        temporary.mkdir()
        try:
            yield temporary
            fsync_tree(temporary)
            os.rename(temporary, final)
            fsync_path(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Delete a folder or file. It is renamed first, so that no reader sees half of it."""
    if not os.path.exists(path):
        return
    with storage_errors(path):
        renamed = temporary_name(path)
        os.rename(path, renamed)
        if renamed.is_dir():
            shutil.rmtree(renamed)
        else:
            renamed.unlink()


def sweep(folder: Path) -> None:
    """Remove what an interrupted writer left under temporary names directly in `folder`."""
    for leftover in _leftovers(folder):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def temporary_files(folder: Path) -> Iterator[Path]:
    """The files that `sweep` would remove."""
    for leftover in _leftovers(folder):
        yield from (p for p in (leftover, *leftover.rglob("*")) if p.is_file())


def _leftovers(folder: Path) -> list[Path]:
    # DuckDB appends its own suffix to what it writes beside a file.
    return [*folder.glob(".*.tmp"), *folder.glob(".*.tmp.wal")]


def sha256_of(*paths: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of the bytes of files, one after another. advance: called with the bytes read."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb", buffering=0) as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
                if advance is not None:
                    advance(len(chunk))
    return digest.hexdigest()
