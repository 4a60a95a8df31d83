"""``catalog.duckdb``: the catalog for any DuckDB client."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featuredb.store.files.atomic import fsync_path, storage_errors, temporary_name
from featuredb.store.files.location import LocalFiles
from featuredb.store.files.scratch import scratch_folder
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from queries.connection import create
from queries.made_macros import workshop
from queries.schema import comment


@contextmanager
def built_catalog(layout: Layout, snapshot: Snapshot) -> Iterator[Path]:
    """The catalog of `snapshot` under a temporary name, flushed, for the block to put in place.

    Raises `CorruptDatabaseError` when the snapshot's files are not there, `StorageError` when the
    disk refuses.
    """
    location = LocalFiles(layout.root.absolute())
    temporary = temporary_name(layout.catalog)
    with storage_errors(layout.catalog):
        try:
            with _writable(temporary) as path, workshop() as shop:
                root = _root_of(location, snapshot)
                made = create(shop.connection, snapshot, location, root, shop.copy_most)
                comment(shop.connection, snapshot, made.copied)
                shop.copy_to(path)
                if made.copied != made.macros.keys():
                    shop.keep(made.macros)
            fsync_path(temporary)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            # DuckDB's own, which it leaves where the disk is full.
            temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)


def _root_of(location: LocalFiles, snapshot: Snapshot) -> str:
    """The database's folder, by way of one that only this publication has.

    DuckDB takes ``..`` out of a path with wildcards before it looks, so a folder whose name has any
    is named directly.
    """
    root = location.duckdb_root
    if snapshot.mark is None or root != location.root.as_posix():
        return root
    folder = snapshot.mark.path.rpartition("/")[0]
    return "/".join([root, folder, *[".."] * (folder.count("/") + 1)])


@contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """Where DuckDB may write the file that is to be at `path`.

    It takes what follows a ``?`` for options and puts its log at the path before them, in another
    folder: such a file is written elsewhere and copied.
    """
    if "?" not in str(path):
        yield path
        return
    with scratch_folder() as folder:
        yield folder / path.name
        shutil.copyfile(folder / path.name, path)


def build_catalog(layout: Layout, snapshot: Snapshot) -> None:
    """Put the catalog of `snapshot` in place of the old one in one step.

    A client that has the old file open keeps reading it. Raises as `built_catalog`.
    """
    with built_catalog(layout, snapshot) as temporary:
        os.replace(temporary, layout.catalog)
    fsync_path(layout.root)
