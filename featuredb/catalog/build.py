"""``catalog.duckdb``: the catalog for any DuckDB client."""

from __future__ import annotations

import os

import duckdb

from featuredb.catalog.connect import create
from featuredb.files import fsync_path, storage_errors, temporary_name
from featuredb.layout import Layout
from featuredb.snapshot import Snapshot


def build_catalog(layout: Layout, snapshot: Snapshot) -> None:
    """Write the catalog of `snapshot` and put it in place of the old one in one step.

    A client that has the old file open keeps reading it. Raises `CorruptDatabaseError` when the
    snapshot's files are not there, `StorageError` when the disk refuses.
    """
    root = layout.root.absolute()
    temporary = temporary_name(layout.catalog)
    with storage_errors(layout.catalog):
        try:
            with duckdb.connect(str(temporary)) as connection:
                create(connection, snapshot, root)
                connection.execute("CHECKPOINT")
            fsync_path(temporary)
            os.replace(temporary, layout.catalog)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(layout.root)
