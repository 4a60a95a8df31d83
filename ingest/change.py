"""A change to a published database: locked, from the live snapshot to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from featuredb.errors import FeatureDBError, IngestError, UnfinishedError
from featuredb.store.files.atomic import remove_tree, storage_errors, sweep
from featuredb.store.files.lock import write_lock
from featuredb.store.history import (
    finish_publication,
    read_snapshot,
    refuse_nothing_to_write_to,
    unfinished_publication,
)
from featuredb.store.layout import Layout
from featuredb.store.new_database import beginning
from featuredb.store.snapshot import Draft, Snapshot
from featuredb.store.unreferenced import clean_up
from ingest.run_plan import plan_path, read_plan


def writing(layout: Layout, purpose: str) -> AbstractContextManager[None]:
    """Hold the write lock of a database that may be new.

    A block that fails before a plan or a snapshot exists leaves nothing behind, neither files nor
    folders above the database. Raises `IngestError` for a folder with other things in it,
    `StorageError` for a path at which there can be no folder, `DatabaseLockedError`.
    """
    return beginning(layout, purpose, IngestError, _remove_everything)


def _remove_everything(layout: Layout) -> None:
    """Undo an ingest that has written no plan yet."""
    if plan_path(layout).exists() or layout.current.exists():
        return
    parts = (
        layout.staging,
        layout.corpora,
        layout.segments,
        layout.derived,
        layout.vectors,
        layout.matrices,
        layout.saes,
        layout.orders,
        layout.user_data,
        layout.snapshots,
        layout.catalog,
        layout.lock,
    )
    for part in parts:
        remove_tree(part)
    sweep(layout.root)


@contextmanager
def changing(path: str | Path, purpose: str) -> Iterator[tuple[Layout, Snapshot]]:
    """Lock a database and give its layout and live snapshot.

    A block that fails leaves no files. Raises `DatabaseError` if there is no database,
    `UnfinishedError` if it has an unfinished ingest, `DatabaseLockedError`, `StorageError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    refuse_nothing_to_write_to(layout)
    with write_lock(layout, purpose), storage_errors(layout.root):
        snapshot = after_the_last_writer(layout)
        refuse_unfinished(layout)
        try:
            yield layout, snapshot
        except BaseException:
            take_back(layout)
            raise


def after_the_last_writer(layout: Layout) -> Snapshot:
    """The live snapshot, after finishing the publication of a killed writer.

    The caller holds the write lock.
    """
    finish_publication(layout)
    live = read_snapshot(layout)
    plan = read_plan(layout)
    if plan is not None and plan.draft.number <= live.number:
        clean_up(layout, live)
    return live


def tidy(layout: Layout, live: Snapshot) -> None:
    """Remove orphaned files, unless an unfinished ingest still needs them."""
    if not plan_path(layout).exists():
        clean_up(layout, live)


def take_back(layout: Layout) -> None:
    """Remove the files of a change that failed. On a full disk they may be what fills it.

    If only ``CURRENT`` was left to write, the files stay and the next writer writes it.
    """
    # The original error matters more than one of cleaning up.
    with suppress(OSError, FeatureDBError):
        if unfinished_publication(layout) is None:
            tidy(layout, read_snapshot(layout))


def refuse_unfinished(layout: Layout) -> None:
    """Raise `UnfinishedError` if there is an unfinished ingest."""
    if plan_path(layout).exists():
        raise UnfinishedError(
            f"{layout.root} holds an unfinished ingest: repeat its command to finish it, or "
            f"give it up with `featuredb vacuum {layout.root} --unfinished`"
        )


def next_draft(snapshot: Snapshot, operation: str) -> Draft:
    """A draft of the next snapshot, with the same contents."""
    return Draft(
        number=snapshot.number + 1,
        operation=operation,
        next_ids=snapshot.unused_ids(),
        position_bits=snapshot.position_bits,
        model=snapshot.model,
        recording=snapshot.recording,
        vocabulary=snapshot.vocabulary,
        corpora=snapshot.corpora,
        saes=snapshot.saes,
        vectors=snapshot.vectors,
    )
