"""The whole catalog of a snapshot as DuckDB statements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import queries
from featuredb.store.snapshot import Snapshot
from queries.catalog import literals
from queries.catalog.naming import naming_macros
from queries.catalog.views import views

if TYPE_CHECKING:
    import duckdb


def of_user_data(snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """DDL of the macros and views that user data decides, to run after `statements`."""
    for question in queries.QUESTIONS.values() if snapshot.user_data else ():
        for macro in question.macros:
            renewed = macro.renewed(snapshot, connection)
            if renewed is not None:
                yield renewed
        view = (
            None if question.view_of_rows is None else question.view_of_rows(snapshot, connection)
        )
        if view is not None:
            yield view


def statements(snapshot: Snapshot, root: str) -> list[str]:
    """DDL to run in order in an empty DuckDB database: views, then the macros of every question.

    root: where the database is now (`Location.duckdb_root`). Files are found below it, or below
    what the reader set with ``SET VARIABLE featuredb_root = '…'`` when the folder has moved since.
    """
    where = literals.text(root)
    return [
        "CREATE MACRO featuredb_root() AS "
        f"coalesce(CAST(getvariable('featuredb_root') AS VARCHAR), {where})",
        *naming_macros(snapshot),
        *views(snapshot),
        *(
            macro.statement(snapshot)
            for question in queries.QUESTIONS.values()
            for macro in question.macros
        ),
    ]
