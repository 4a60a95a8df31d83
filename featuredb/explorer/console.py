"""SQL of a page or an agent: one statement that only reads, for a while, and not too many rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featuredb.errors import SQLError
from featuredb.store.store import Store
from queries.answers import Rows
from queries.connection import Reader, bound, confine
from queries.overseen import Overseer
from queries.sql import duckdb_errors, fetched

if TYPE_CHECKING:
    import duckdb

MOST_ROWS = 1_000
SECONDS = 10.0
MEMORY = 2 * 10**9
_ADVICE = "ask for less, or run it with `featuredb sql`, which has no limit"


@dataclass(frozen=True, repr=False)
class CappedRows(Rows):
    """The first rows of a statement's answer. more: there are others."""

    more: bool = False


class Console:
    """A DuckDB of its own over a store, confined to the database's files."""

    def __init__(self, store: Store, overseer: Overseer | None = None) -> None:
        """overseer: what stops statements, one of its own by default."""
        self._reader = Reader(store, _prepare)
        self._overseer = overseer or Overseer()

    def move_on(self, store: Store) -> None:
        """Ask a later snapshot from now on."""
        self._reader = Reader(store, _prepare)

    def ask(self, query: str, seconds: float = SECONDS) -> CappedRows:
        """The first rows. Raises `SQLError` for what writes, takes too long or fails."""
        statement = _only_statement(query)
        with self._overseer.limit(seconds, _ADVICE):
            cursor = self._reader.cursor()
            try:
                with duckdb_errors(self._reader.location):
                    # DuckDB lets a WITH clause write (COPY, INSERT), but not below a statement.
                    capped = f"SELECT * FROM (\n{statement}\n) LIMIT {MOST_ROWS + 1}"
                    table = fetched(cursor.sql(capped))
            finally:
                cursor.close()
        return CappedRows(table.slice(0, MOST_ROWS), more=len(table) > MOST_ROWS)


def _prepare(reader: Reader, connection: duckdb.DuckDBPyConnection) -> None:
    bound(connection, MEMORY)
    confine(connection, reader.location)


def _only_statement(query: str) -> str:
    """The one statement, without its semicolon. Raises `SQLError` unless it is one that reads."""
    import duckdb

    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise SQLError(str(error)) from None
    if not statements:
        raise SQLError("there is no statement in this SQL")
    if len(statements) != 1:
        raise SQLError(f"give one statement, not {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name
        raise SQLError(f"{kind} is not answered here: only what reads is (SELECT, FROM, DESCRIBE)")
    return statements[0].query.strip().rstrip(";")
