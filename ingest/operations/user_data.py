"""Write user data: one more snapshot, which shares all but one file with the one before."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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


Tables = Mapping[str, pa.Table]
"""Whole tables of user data, by name."""


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
    new = signed(rows, table)
    return change_user_data(
        path,
        [table],
        lambda _, tables: {table.name: replaced(tables[table.name], new, table)},
        operation,
        wait,
    )


def change_user_data(
    path: Path,
    tables: Sequence[UserTable],
    change: Callable[[Snapshot, Tables], Tables],
    operation: str,
    wait: float = WAIT,
) -> Snapshot:
    """Publish the database with tables of user data as `change` makes them, all in one snapshot.

    Args:
        path: The database folder.
        tables: Those that `change` is given.
        change: From the live snapshot and the whole tables, by name, to those that differ, each
            sorted by its key. Nothing is published where there are none. Called with the lock held.
        operation: What the snapshot records as having made it.
        wait: Seconds to wait for another writer.

    Returns:
        The live snapshot.

    Raises:
        DatabaseError, StorageError: As `write_user_data`, and whatever `change` raises.
    """
    with _waiting(path, operation, wait) as (layout, base):
        files = ParquetFiles(layout.root, memory_map=False)
        changed = change(base, {table.name: user_rows(files, base, table) for table in tables})
        files.close()
        if not changed:
            return base
        entries = {data.table: data for data in base.user_data}
        for name, whole in changed.items():
            entries[name] = _written(layout, name, whole)
        snapshot = msgspec.structs.replace(
            base,
            featuredb=WRITER,
            number=base.number + 1,
            created=now(),
            operation=operation,
            mark=write_mark(layout, base.number + 1),
            user_data=tuple(entries[name] for name in sorted(entries)),
        )
        with built_catalog(layout, snapshot) as catalog:
            return write_snapshot(layout, snapshot, catalog)


def _written(layout: Layout, name: str, whole: pa.Table) -> UserData:
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, compression="zstd", row_group_size=_ROW_GROUP)
    data = sink.getvalue().to_pybytes()
    file = layout.user_data / f"{name}.{sha256(data).hexdigest()}.parquet"
    write_atomically(file, data)
    return UserData(name, file_entry(layout, file, rows=len(whole)))


def refuse_no_writing(path: Path, operation: str, wait: float | None = None) -> None:
    """Before long work: raise as `write_user_data` would, unless only another writer is busy.

    wait: raise for that, too, where it goes on for so many seconds.
    """
    if wait is not None:
        with _waiting(path, operation, wait):
            return
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


def signed(rows: pa.Table, table: UserTable) -> pa.Table:
    """The rows in the table's schema, with the user's name and the time where they have none."""
    for name, value in (("author", user()), ("created", now())):
        if name in rows.column_names:
            filled = rows.column(name).cast(pa.string()).fill_null(value)
            rows = rows.set_column(rows.column_names.index(name), name, filled)
        else:
            rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
    return rows.select(table.schema.names).cast(table.schema)


def user() -> str:
    """Who writes."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "unknown"
