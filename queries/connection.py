"""What questions are asked of: a store, and a DuckDB connection that sees its snapshot."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from featuredb.errors import CorruptDatabaseError, first_line
from featuredb.store.files.location import Location
from featuredb.store.files.scratch import spill_folder
from featuredb.store.snapshot import Snapshot
from featuredb.store.store import Store
from queries import made_macros
from queries.overseen import oversee

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Made:
    """The macros of a catalog, DDL by name, and the names of those that were copied."""

    macros: Mapping[str, str]
    copied: frozenset[str]


NO_EXTENSIONS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""Settings of a DuckDB that opens files of others: what they ask for is not fetched."""

_BYTES_PER_THREAD = 125 * 10**6
"""What a thread needs to sort or group without failing, as DuckDB's manual has it."""


class Reader:
    """A store and, once a question needs it, an in-memory DuckDB with its views and macros.

    prepare: called with the reader and its connection when that is made, to add to it. DuckDB keeps
    what it adds, so the reader is a weak reference.
    """

    def __init__(
        self,
        store: Store,
        prepare: Callable[[Reader, duckdb.DuckDBPyConnection], None] | None = None,
    ) -> None:
        self.store = store
        self._prepare = prepare
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._lock = threading.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """What the store is pinned to."""
        return self.store.snapshot

    @property
    def location(self) -> Location:
        """Where the database is."""
        return self.store.location

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """One more connection to the same DuckDB.

        A connection refuses a statement while another thread, or a reader of rows that is not at
        its end, uses it. So every question has its own.
        """
        with self._lock:
            if self._connection is None:
                connection = connect(self.snapshot, self.location, self.store.memory)
                if self._prepare is not None:
                    self._prepare(weakref.proxy(self), connection)
                self._connection = connection
            cursor = self._connection.cursor()
        oversee(cursor)
        return cursor

    def close(self) -> None:
        """Close every file and connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        self.store.close()


def bare(location: Location) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB that can read the files at `location`."""
    import duckdb

    connection = duckdb.connect(":memory:")
    files = location.duckdb_files()
    if files is not None:
        connection.register_filesystem(files)
    return connection


def connect(
    snapshot: Snapshot, location: Location, memory: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the catalog of `snapshot`, for files at `location`.

    memory: bytes to work in, results not counted. None for DuckDB's own bound, most of the
    machine's. What does not fit goes to a temporary folder.

    Raises `CorruptDatabaseError` when a file of the views is missing or damaged.
    """
    import duckdb

    connection = bare(location)
    # Footers are parsed once: the files of a snapshot never change. Of every cursor too.
    connection.execute("SET GLOBAL parquet_metadata_cache = true")
    with suppress(duckdb.InvalidInputException):  # Jupyter without ipywidgets has no bar
        connection.execute("SET enable_progress_bar = false")
    connection.execute("SET temp_directory = ?", [str(spill_folder() or "")])
    if memory is not None:
        bound(connection, memory)
    location.prefetch_footers(_first_files(snapshot))
    copy = partial(made_macros.copy_all, connection)
    create(connection, snapshot, location, location.duckdb_root, copy)
    return connection


def bound(connection: duckdb.DuckDBPyConnection, memory: int) -> None:
    """Keep DuckDB within `memory` bytes, and so few threads that they have enough of it.

    It gets four fifths: it does not count Parquet decoding and what its allocator keeps.
    """
    connection.execute(f"SET memory_limit = '{memory * 4 // 5}B'")
    threads = max(1, min(os.cpu_count() or 1, memory // _BYTES_PER_THREAD))
    connection.execute(f"SET threads = {threads}")


def confine(connection: duckdb.DuckDBPyConnection, location: Location) -> None:
    """Let SQL read no file but the database's own, and reach no network. Cannot be undone."""
    root = location.duckdb_root.replace("'", "''")
    connection.execute("SET python_enable_replacements = false")
    connection.execute(f"SET allowed_directories = ['{root}/']")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _first_files(snapshot: Snapshot) -> list[str]:
    """The files with footers that DuckDB reads to create the views."""
    derived = snapshot.derived
    files = [snapshot.vocabulary, derived.features, derived.coactivation]
    files += [derived.neighbors_decoder, derived.neighbors_encoder]
    files += [t.examples for t in derived.saes] + [s.sinks for s in snapshot.segments]
    files += [f for c in snapshot.corpora for f in (c.documents, c.contexts)]
    files += [data.file for data in snapshot.user_data]
    files += [s.feature_files[0].file for s in snapshot.segments if s.feature_files]
    return [f.path for f in files]


def create(
    connection: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,
    location: Location,
    root: str,
    copy: Callable[[Mapping[str, str]], Collection[str]],
) -> Made:
    """Make the catalog of `snapshot` in an empty database.

    root: see `queries.macros.root_macro`. copy: puts there what it has of the macros that it is
    given, DDL by name, and says which it did. Raises `CorruptDatabaseError`.
    """
    import duckdb

    from queries import macros
    from queries.catalog.views import views

    wanted = macros.macros(snapshot)
    copied = copy(wanted)
    try:
        connection.execute(macros.root_macro(root))
        for statement in views(snapshot):
            connection.execute(statement)
        for name, statement in wanted.items():
            if name not in copied:
                connection.execute(statement)
        renewed = macros.macros_of_user_data(snapshot, connection)
        for statement in renewed.values():
            connection.execute(statement)
        for statement in macros.views_of_user_data(snapshot, connection):
            connection.execute(statement)
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise CorruptDatabaseError(
            f"the tables of {location.address[0]} cannot be opened ({first_line(error)}): "
            "run `featuredb verify` to see what is damaged, and restore it from a copy"
        ) from error
    return Made(wanted | renewed, frozenset(copied) - renewed.keys())
