"""What an ingest that is refused leaves behind: nothing, until its plan is written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featuredb.errors import IngestError, StorageError
from featuredb.files import refusal, remove_tree, storage_errors, sweep
from featuredb.layout import Layout
from featuredb.lock import write_lock
from ingest.plan import plan_path


@contextmanager
def writing(layout: Layout, purpose: str) -> Iterator[None]:
    """Hold the write lock; where the block fails before a plan or a snapshot exists, remove
    whatever was made, folders above the database included.

    Raises `IngestError` for a folder with other things in it, `StorageError` for a path at which
    there can be no folder, `DatabaseLockedError`.
    """
    refuse_other_folders(layout)
    made = _missing_folders(layout.root)
    try:
        with write_lock(layout, purpose):
            try:
                # Every library that writes on the way has its own word for a full disk.
                with storage_errors(layout.root):
                    yield
            except BaseException:
                if not plan_path(layout).exists() and not layout.current.exists():
                    _remove_parts(layout)
                raise
    finally:
        # Empty ones only: whatever is still there keeps the rest.
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def refuse_other_folders(layout: Layout) -> None:
    """A database begins in a new or empty folder: its parts have everyday names, and an ingest
    that starts over removes them. Raises `IngestError`, `StorageError`."""
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
        raise IngestError(
            f"{root} is not a featuredb database and not empty ({sorted(names)[0]}): "
            "give a new path"
        )


def _missing_folders(path: Path) -> list[Path]:
    """`path` and the folders above it that do not exist, deepest first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing


def _remove_parts(layout: Layout) -> None:
    parts = (
        layout.staging,
        layout.corpora,
        layout.segments,
        layout.derived,
        layout.vectors,
        layout.matrices,
        layout.orders,
        layout.snapshots,
        layout.catalog,
        layout.lock,
    )
    # The error on its way out matters more than what could not be tidied up after it.
    with suppress(OSError, StorageError):
        for part in parts:
            remove_tree(part)
        sweep(layout.root)
