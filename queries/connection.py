"""A DuckDB connection that sees one snapshot."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb

from featuredb.errors import CorruptDatabaseError
from featuredb.store.files.remote import Remote
from featuredb.store.files.spills import spill_folder
from featuredb.store.snapshot import Snapshot
from queries.macros import statements

_BYTES_PER_THREAD = 125 * 10**6
"""What a thread needs to sort or group without failing, as DuckDB's manual has it."""


def bare(root: Path | Remote) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB that can read the files below `root`."""
    connection = duckdb.connect(":memory:")
    if isinstance(root, Remote):
        # Imported here, as fsspec takes time and a local database has no use for it.
        from queries.catalog.remote_files import RemoteFiles

        connection.register_filesystem(RemoteFiles(root))
    return connection


def connect(
    snapshot: Snapshot, root: Path | Remote, memory: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB holding the catalog of `snapshot`, whose files are below `root`.

    memory: bytes to work in, what is handed out not counted; None for DuckDB's own bound, most of
    the machine's. What does not fit goes to a temporary folder.

    Raises `CorruptDatabaseError` when a file the views stand on is missing or damaged.
    """
    connection = bare(root)
    # Footers are parsed once: the files of a snapshot never change. Of every cursor too.
    connection.execute("SET GLOBAL parquet_metadata_cache = true")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET temp_directory = ?", [str(spill_folder() or "")])
    if memory is not None:
        bound(connection, memory)
    if isinstance(root, Remote):
        root.fetch_ends(_first_files(snapshot))
    create(connection, snapshot, root)
    return connection


def bound(connection: duckdb.DuckDBPyConnection, memory: int) -> None:
    """Keep DuckDB within `memory` bytes, and so few threads that they have enough of it.

    It is told of four fifths: decoding Parquet and what its allocator keeps it does not count.
    """
    connection.execute(f"SET memory_limit = '{memory * 4 // 5}B'")
    threads = max(1, min(os.cpu_count() or 1, memory // _BYTES_PER_THREAD))
    connection.execute(f"SET threads = {threads}")


def _first_files(snapshot: Snapshot) -> list[str]:
    """The files whose footers DuckDB reads while it makes the views."""
    derived = snapshot.derived
    files = [snapshot.vocabulary, derived.features, derived.coactivation]
    files += [derived.neighbors_decoder, derived.neighbors_encoder]
    files += [t.examples for t in derived.saes] + [s.sinks for s in snapshot.segments]
    files += [f for c in snapshot.corpora for f in (c.documents, c.contexts)]
    files += [s.feature_files[0].file for s in snapshot.segments if s.feature_files]
    return [f.path for f in files]


def create(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, root: Path | Remote) -> None:
    """Run the catalog's statements. Raises `CorruptDatabaseError`."""
    try:
        for statement in statements(snapshot, root):
            connection.execute(statement)
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise CorruptDatabaseError(
            f"the tables of {root} cannot be opened ({str(error).splitlines()[0]}): "
            "run `featuredb verify` to see what is damaged, and restore it from a copy"
        ) from error
