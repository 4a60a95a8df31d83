"""What an ingest that is refused leaves behind: nothing, until its plan is written down."""

from __future__ import annotations

from contextlib import AbstractContextManager

from featuredb.errors import IngestError
from featuredb.store.files.atomic import remove_tree, sweep
from featuredb.store.layout import Layout
from featuredb.store.new_database import beginning
from ingest.run_plan import plan_path


def writing(layout: Layout, purpose: str) -> AbstractContextManager[None]:
    """Hold the write lock; where the block fails before a plan or a snapshot exists, remove
    whatever was made, folders above the database included.

    Raises `IngestError` for a folder with other things in it, `StorageError` for a path at which
    there can be no folder, `DatabaseLockedError`.
    """
    return beginning(layout, purpose, IngestError, _take_back)


def _take_back(layout: Layout) -> None:
    if plan_path(layout).exists() or layout.current.exists():
        return
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
    for part in parts:
        remove_tree(part)
    sweep(layout.root)
