"""A DuckDB connection that sees one snapshot."""

from __future__ import annotations

from pathlib import Path

import duckdb

from featuredb.catalog.statements import statements
from featuredb.errors import CorruptDatabaseError
from featuredb.snapshot import Snapshot


def connect(snapshot: Snapshot, root: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB holding the catalog of `snapshot`, whose files are below `root`.

    Raises `CorruptDatabaseError` when a file the views stand on is missing or damaged.
    """
    connection = duckdb.connect(":memory:")
    # Footers are parsed once: the files of a snapshot never change.
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET enable_progress_bar = false")
    create(connection, snapshot, root)
    return connection


def create(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, root: Path) -> None:
    """Run the catalog's statements. Raises `CorruptDatabaseError`."""
    try:
        for statement in statements(snapshot, root):
            connection.execute(statement)
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise CorruptDatabaseError(
            f"the tables of {root} cannot be opened ({str(error).splitlines()[0]}): "
            "run `featuredb verify` to see what is damaged, and restore it from a copy"
        ) from error
