"""Write user data: one more snapshot, which shares all but one file with the one before."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import DatabaseLockedError
from featuredb.store.files.atomic import write_atomically
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry, now, write_mark, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import WRITER, Snapshot, UserData
from featuredb.store.user_data import UserTable, replaced, user_rows
from ingest.change import changing
from queries.catalog_file import built_catalog

WAIT = 30.0
"""Seconds that a write waits for another writer. Writes of user data are short."""

_BETWEEN_TRIES = 0.05

_ROW_GROUP = 1_024
"""Rows per row group: one group is what a look at one feature reads."""


def write_user_data(
    path: Path, table: UserTable, rows: pa.Table, operation: str, wait: float = WAIT
) -> Snapshot:
    """Publish the database with rows of user data, in place of those with the same keys.

    Args:
        path: The database folder.
        table: Which table.
        rows: Its columns without author and created, which are the user's name and the time now.
        operation: What the snapshot records as having made it.
        wait: Seconds to wait for another writer.

    Returns:
        The new snapshot.

    Raises:
        DatabaseError: There is no database, it has an unfinished ingest, or another process
            writes for longer.
        StorageError: The disk is full or read-only.
    """
    with _waiting(path, operation, wait) as (layout, base):
        files = ParquetFiles(layout.root, memory_map=False)
        whole = replaced(user_rows(files, base, table), _signed(rows, table), table)
        files.close()
        sink = pa.BufferOutputStream()
        pq.write_table(whole, sink, compression="zstd", row_group_size=_ROW_GROUP)
        data = sink.getvalue().to_pybytes()
        file = layout.user_data / f"{table.name}.{sha256(data).hexdigest()}.parquet"
        write_atomically(file, data)
        written = UserData(table.name, file_entry(layout, file, rows=len(whole)))
        others = [each for each in base.user_data if each.table != table.name]
        snapshot = msgspec.structs.replace(
            base,
            featuredb=WRITER,
            number=base.number + 1,
            created=now(),
            operation=operation,
            mark=write_mark(layout, base.number + 1),
            user_data=tuple(sorted([*others, written], key=lambda each: each.table)),
        )
        with built_catalog(layout, snapshot) as catalog:
            return write_snapshot(layout, snapshot, catalog)


def refuse_no_writing(path: Path, operation: str) -> None:
    """Before long work: raise as `write_user_data` would, unless only another writer is busy."""
    with suppress(DatabaseLockedError), changing(path, operation):
        pass


@contextmanager
def _waiting(path: Path, operation: str, wait: float) -> Iterator[tuple[Layout, Snapshot]]:
    """As `changing`, waiting for another writer."""
    end = time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            try:
                opened = stack.enter_context(changing(path, operation))
                break
            except DatabaseLockedError:
                if time.monotonic() >= end:
                    raise
                time.sleep(_BETWEEN_TRIES)
        yield opened


def _signed(rows: pa.Table, table: UserTable) -> pa.Table:
    """The rows with author and time, in the table's schema."""
    try:
        author = getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        author = "unknown"
    for name, value in (("author", author), ("created", now())):
        rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
    return rows.select(table.schema.names).cast(table.schema)
