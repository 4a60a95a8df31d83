"""The views, tables and macros that SQL can ask, and what they and their columns are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

import queries
from featuredb.errors import QueryError
from featuredb.render.view import Column, Heading, Part, Table, View
from featuredb.store.snapshot import Snapshot
from queries.answers import Answer, Row
from queries.arguments import check_text
from queries.catalog import literals
from queries.catalog.columns import about_column
from queries.catalog.views import RELATIONS
from queries.connection import Reader
from queries.question import Question

if TYPE_CHECKING:
    import duckdb

_MEMBERS = re.compile(r"\(.*\)")
_ROW = pa.schema([(name, pa.string()) for name in ("kind", "name", "column", "type", "about")])


@dataclass(frozen=True, repr=False)
class Schema(Answer):
    """What SQL can ask: views and tables with their columns, then macros.

    Columns, all strings: kind (``view``, ``table`` or ``macro``), name, column (null for the view
    or macro itself), type (of the column, or the macro's parameters) and about.
    """

    kind: ClassVar[str] = "schema"

    def view(self) -> View:
        """Every view with the names of its columns, or all about the one that was asked for."""
        rows = list(self)
        heads = [row for row in rows if row.column is None]
        if len({row.name for row in heads}) == 1:
            columns = [row for row in rows if row.column is not None]
            return View([_one(head, columns if head.kind != "macro" else []) for head in heads])
        relations = [row for row in heads if row.kind != "macro"]
        macros = [row for row in heads if row.kind == "macro"]
        return View(
            [
                [
                    Heading("", "views", " · what is in one: featuredb sql DB NAME"),
                    _names(relations),
                ],
                [Heading("", "macros", " · FROM near(1234)"), _names(macros)],
            ]
        )


def _one(head: Row, columns: list[Row]) -> list[Part]:
    parts: list[Part] = [
        Heading(f"{head.kind} ", head.name, head.type or ""),
        Table([Column("", [head.about], wrap=True)]),
    ]
    if columns:
        names = Column("column", [row.column for row in columns], style="bold")
        types = Column("type", [_MEMBERS.sub("(…)", row.type) for row in columns], style="dim")
        parts.append(Table([names, types, _about(columns)]))
    return parts


def _names(rows: list[Row]) -> Table:
    return Table([Column("", [row.name for row in rows], style="bold"), _about(rows)])


def _about(rows: list[Row]) -> Column:
    return Column("", [row.about for row in rows], wrap=True)


def schema(reader: Reader, name: str | None = None) -> Schema:
    """See `featuredb.Database.schema`."""
    rows = list(_rows(reader.cursor(), reader.snapshot))
    if name is not None:
        check_text(name, "the name of a view or macro")
        known = list(dict.fromkeys(row["name"] or "" for row in rows))
        rows = [row for row in rows if row["name"] == name.lower()]
        if not rows:
            similar = get_close_matches(name, known) or known
            raise QueryError(
                f"there is no view or macro {name}: did you mean {', '.join(similar)}?"
            )
    return Schema(pa.Table.from_pylist(rows, schema=_ROW))


def _rows(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot
) -> Iterator[dict[str, str | None]]:
    """Rows of `_ROW`, in the order in which the catalog is made, views before macros."""
    columns: dict[str, list[tuple[str, str]]] = {}
    listed = (
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal "
        "AND database_name = current_database() "
        "ORDER BY table_name, column_index"
    )
    for relation, column, kind in connection.execute(listed).fetchall():
        columns.setdefault(relation, []).append((column, kind))
    for each in sorted(RELATIONS, key=lambda each: each.kind == "table"):
        yield _row(each.kind, each.name, None, None, each.about)
        for column, kind in columns[each.name]:
            yield _row(
                each.kind, each.name, column, kind, about_column(snapshot, each.name, column)
            )
    for question in queries.QUESTIONS.values():
        for macro in question.public_macros:
            parameters = macro.signature.removeprefix(macro.name)
            yield _row("macro", macro.name, None, parameters, macro.about)


def _row(*values: str | None) -> dict[str, str | None]:
    return dict(zip(_ROW.names, values, strict=True))


def comment(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, copied: Collection[str]
) -> None:
    """Let the catalog of a connection say what it holds, to any client.

    copied: names of the macros that have their comments.
    """
    tables = {m.name: m.table for q in queries.QUESTIONS.values() for m in q.macros}
    statements = []
    for row in _rows(connection, snapshot):
        kind, name = row["kind"] or "", literals.name(row["name"] or "")
        if kind == "macro" and row["name"] in copied:
            continue
        if row["column"] is not None:
            kind, name = "column", f"{name}.{literals.name(row['column'])}"
        elif kind == "macro" and tables[row["name"] or ""]:
            kind = "macro table"
        statements.append(f"COMMENT ON {kind} {name} IS {literals.text(row['about'] or '')}")
    connection.execute(";".join(statements))


QUESTION = Question("schema", Schema, "sql")
