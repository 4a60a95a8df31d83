"""Create the folder of a new database, and clean it up on failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from featuredb.errors import FeatureDBError, StorageError
from featuredb.store.files.atomic import missing_folders, refusal, storage_errors
from featuredb.store.files.lock import write_lock
from featuredb.store.layout import Layout


@contextmanager
def beginning(
    layout: Layout,
    purpose: str,
    refused: type[FeatureDBError],
    take_back: Callable[[Layout], None],
) -> Iterator[None]:
    """Hold the write lock of a database that may be new.

    take_back: cleans up orphaned files if the block fails. Empty folders created for the database,
    including its parents, are removed. Raises `refused` for a folder with other contents,
    `StorageError` for a path that cannot be a folder, `DatabaseLockedError`.
    """
    refuse_other_folders(layout, refused)
    made = missing_folders(layout.root)
    try:
        with write_lock(layout, purpose):
            try:
                # Each library reports a full disk with a different error.
                with storage_errors(layout.root):
                    yield
            except BaseException:
                # The original error matters more than a failed cleanup.
                with suppress(OSError, StorageError):
                    take_back(layout)
                raise
    finally:
        # Only empty folders are removed.
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def refuse_other_folders(layout: Layout, refused: type[FeatureDBError]) -> None:
    """Refuse a non-empty folder that is not a database: its parts have common names, and cleanup
    removes files that no snapshot references. Raises `refused`, `StorageError`."""
    root = layout.root
    try:
        names = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        file = next(path for path in (root, *root.parents) if path.exists())
        raise StorageError(f"{file} is a file: give a path for the database's folder") from error
    except OSError as error:
        raise refusal(error, root) or error from error
    markers = {layout.lock.name, layout.current.name}
    if names and not markers.intersection(names):
        raise refused(
            f"{root} is not a featuredb database and not empty ({sorted(names)[0]}): "
            "give a new path"
        )
