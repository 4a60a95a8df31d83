"""The folder that a database begins in: empty at first, and gone again where nothing came of it."""

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

    take_back: removes what nothing needs where the block fails; folders that were made for the
    database, above it included, go with it. Raises `refused` for a folder with other things in it,
    `StorageError` for a path at which there can be no folder, `DatabaseLockedError`.
    """
    refuse_other_folders(layout, refused)
    made = missing_folders(layout.root)
    try:
        with write_lock(layout, purpose):
            try:
                # Every library that writes on the way has its own word for a full disk.
                with storage_errors(layout.root):
                    yield
            except BaseException:
                # The error on its way out matters more than what could not be tidied up after it.
                with suppress(OSError, StorageError):
                    take_back(layout)
                raise
    finally:
        # Empty ones only: whatever is still there keeps the rest.
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def refuse_other_folders(layout: Layout, refused: type[FeatureDBError]) -> None:
    """A database begins in a new or empty folder: its parts have everyday names, and what no
    snapshot names in them is removed. Raises `refused`, `StorageError`."""
    root = layout.root
    try:
        names = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise StorageError(f"{root} is a file: give a path for the database's folder") from error
    except OSError as error:
        raise refusal(error, root) or error from error
    own = {layout.lock.name, layout.current.name}
    if names and not own.intersection(names):
        raise refused(
            f"{root} is not a featuredb database and not empty ({sorted(names)[0]}): "
            "give a new path"
        )
