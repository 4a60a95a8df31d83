"""A DuckDB connection that sees one snapshot."""

from __future__ import annotations

from pathlib import Path

import duckdb

from featuredb.catalog.statements import statements
from featuredb.errors import CorruptDatabaseError
from featuredb.remote import Remote
from featuredb.snapshot import Snapshot


def bare(root: Path | Remote) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB that can read the files below `root`."""
    connection = duckdb.connect(":memory:")
    if isinstance(root, Remote):
        # Imported here, as fsspec takes time and a local database has no use for it.
        from featuredb.catalog.remote_files import RemoteFiles

        connection.register_filesystem(RemoteFiles(root))
    return connection


def connect(snapshot: Snapshot, root: Path | Remote) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB holding the catalog of `snapshot`, whose files are below `root`.

    Raises `CorruptDatabaseError` when a file the views stand on is missing or damaged.
    """
    connection = bare(root)
    # Footers are parsed once: the files of a snapshot never change.
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET enable_progress_bar = false")
    if isinstance(root, Remote):
        root.fetch_ends(_first_files(snapshot))
    create(connection, snapshot, root)
    return connection


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
