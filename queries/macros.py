"""The whole catalog of a snapshot as DuckDB statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import queries
from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.catalog.naming import naming_macros

if TYPE_CHECKING:
    import duckdb


def root_macro(root: str) -> str:
    """DDL of the macro that every other reads files by.

    root: where the database is now (`Location.duckdb_root`). Files are found below it, or below
    what the reader set with ``SET VARIABLE featuredb_root = '…'`` when the folder has moved since.
    """
    where = literals.text(root)
    body = f"coalesce(CAST(getvariable('featuredb_root') AS VARCHAR), {where})"
    return f"CREATE OR REPLACE MACRO featuredb_root() AS {body}"


def macros(snapshot: Snapshot) -> dict[str, str]:
    """DDL of every other macro by its name, in the order in which they are made, after the views.

    They are the same wherever the database is.
    """
    asked = [macro for question in queries.QUESTIONS.values() for macro in question.macros]
    return {m.name: m.statement(snapshot) for m in [*naming_macros(snapshot), *asked]}


def macros_of_user_data(
    snapshot: Snapshot, connection: duckdb.DuckDBPyConnection
) -> dict[str, str]:
    """DDL of the macros that user data decides, by name, in place of those of `macros`.

    connection: with the views.
    """
    asked = [macro for question in queries.QUESTIONS.values() for macro in question.macros]
    renewed = {m.name: m.renewed(snapshot, connection) for m in asked if snapshot.user_data}
    return {name: ddl for name, ddl in renewed.items() if ddl is not None}


def views_of_user_data(snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> list[str]:
    """DDL of the views that user data decides. connection: with all macros."""
    of_rows = [q.view_of_rows for q in queries.QUESTIONS.values() if snapshot.user_data]
    views = [view(snapshot, connection) for view in of_rows if view is not None]
    return [ddl for ddl in views if ddl is not None]
