"""What a question consists of: its name, its answer, its Python, its SQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import duckdb

    from featuredb.render.view import Shown
    from featuredb.store.snapshot import Snapshot

Sql: TypeAlias = "str | Callable[[Snapshot], str]"


@dataclass(frozen=True)
class Macro:
    """A macro of the catalog, such as ``search(query, k := 20)``.

    sql: its body, or what makes the body for a snapshot. table: it gives rows, not one value.
    about: what it answers, in one line, for those that users call. of_rows: its body where user
    data decides it, from a connection that has the views, None where `sql` stands.
    """

    signature: str
    sql: Sql
    table: bool = True
    about: str = ""
    of_rows: Callable[[Snapshot, duckdb.DuckDBPyConnection], str | None] | None = None

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0].strip('"')

    def statement(self, snapshot: Snapshot) -> str:
        """DDL that creates it, in place of one of its name."""
        return self._ddl(self.sql if isinstance(self.sql, str) else self.sql(snapshot))

    def renewed(self, snapshot: Snapshot, connection: duckdb.DuckDBPyConnection) -> str | None:
        """DDL that makes it anew from user data, None where there is none."""
        body = None if self.of_rows is None else self.of_rows(snapshot, connection)
        return None if body is None else self._ddl(body)

    def _ddl(self, body: str) -> str:
        return f"CREATE OR REPLACE MACRO {self.signature} AS {'TABLE ' * self.table}{body}"


@dataclass(frozen=True)
class Question:
    """One question that a database answers.

    method: the method of `featuredb.Database`. verb: the command of the CLI, where there is one.
    answer: the class of the answer. macros: in the order in which they are created. Those whose
    names begin with ``featuredb_`` are parts of the others. view_of_rows: DDL that makes a view
    anew from user data, None where there is none.
    """

    method: str
    answer: type[Shown]
    verb: str | None = None
    macros: tuple[Macro, ...] = ()
    view_of_rows: Callable[[Snapshot, duckdb.DuckDBPyConnection], str | None] | None = None

    @property
    def public_macros(self) -> tuple[Macro, ...]:
        """Those that users call."""
        return tuple(macro for macro in self.macros if not macro.name.startswith("featuredb_"))
