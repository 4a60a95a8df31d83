"""Any SQL over the snapshot's views and macros."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import queries
from featuredb import errors
from featuredb.errors import CorruptDatabaseError, FeatureDBError, SQLError, first_line
from featuredb.store.files.location import Location
from queries.answers import Rows
from queries.arguments import check_text
from queries.connection import Reader
from queries.question import Question

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_OF_A_CONNECTION = re.compile(
    r"\s*(CREATE\s+(OR\s+REPLACE\s+)?TEMP(ORARY)?|SET\s+VARIABLE|PREPARE|BEGIN|START|USE)\b"
    r"[^;]*;?\s*",
    re.IGNORECASE,
)
"""A statement, with no other after it, that is for later ones of the same connection."""

_CHANGED = re.compile(
    r"\b(?:DROP|ALTER|CREATE\s+OR\s+REPLACE)\s+(?:MACRO\s+TABLE|FUNCTION\s+TABLE|\w+)\s+"
    r"(?:IF\s+EXISTS\s+)?(?:(?:\w+|\"[^\"]*\")\s*\.\s*)*(?:(\w+)|\"([^\"]*)\")",
    re.IGNORECASE,
)
"""What a statement drops, alters or replaces."""

_RAISED = re.compile(r"exception occurred while executing the UDF: (\w+): (.+)", re.DOTALL)
"""What DuckDB makes of an exception in `fires_on`."""


@contextmanager
def duckdb_errors(location: Location) -> Iterator[None]:
    """Turn every DuckDB exception into `SQLError`, with DuckDB's message, except when memory runs
    out. One that ``fires_on`` raised stays what it was.

    A file of the store that is gone or unreadable is `CorruptDatabaseError` instead, a remote one
    that cannot be had what `RemoteFiles.fetch` raises.
    """
    # Most questions do not need DuckDB, and importing it takes longer than they do.
    import duckdb

    root = location.address[0]
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if location.failure is not None and str(location.failure) in text:
            raise location.failure from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise SQLError(_out_of_memory(text)) from None
        damaged = isinstance(error, duckdb.IOException | duckdb.InvalidInputException)
        if damaged and (root in text or location.duckdb_root in text):
            raise CorruptDatabaseError(
                f"a file of {root} is missing or damaged ({first_line(text)}): "
                "run `featuredb verify` to see what else is, and restore it from a copy"
            ) from error
        own = _RAISED.search(text)
        kind = getattr(errors, own[1], None) if own is not None else None
        if own is not None and isinstance(kind, type) and issubclass(kind, FeatureDBError):
            raise kind(own[2]) from None
        # DuckDB's own exception says the same in thirty lines.
        raise SQLError(text) from None


def _out_of_memory(text: str) -> str:
    """One line from DuckDB's message."""
    what = text.splitlines()[0].removeprefix("Out of Memory Error: ")
    if "max_temp_directory_size" in text:
        return (
            f"no room on the disk for what does not fit the memory ({what}): "
            "free some, or set TMPDIR to a folder on another disk"
        )
    return f"DuckDB ran out of memory ({what}): raise --memory, or memory= of featuredb.open"


def sql(
    reader: Reader,
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> duckdb.DuckDBPyRelation:
    """See `featuredb.Database.sql`. Runs in memory: nothing stored can change."""
    check_text(query, "the statement")
    lasting = _OF_A_CONNECTION.fullmatch(query)
    if lasting is not None:
        raise SQLError(
            f"{lasting[1]} would be over before the next statement, which has another connection: "
            "put both in one text, or create without TEMP"
        )
    with duckdb_errors(reader.location):
        _refuse_change(query)
        cursor = reader.cursor()
        for name, table in (tables or {}).items():
            _register(cursor, name, table)
        values = dict(params) if isinstance(params, Mapping) else params
        relation = cursor.sql(query, params=values)
    if relation is None:
        raise SQLError("there is no statement in this SQL")
    return relation


def _refuse_change(query: str) -> None:
    """Raise `SQLError` where a view or macro of the database would be another, or gone."""
    if not _CHANGED.search(query):
        return
    import duckdb

    from queries.catalog.views import RELATIONS

    kinds = duckdb.StatementType
    for statement in duckdb.extract_statements(query):
        changed = _CHANGED.search(statement.query)
        if changed is None or statement.type not in (kinds.DROP, kinds.ALTER, kinds.CREATE):
            continue
        name = (changed[1] or changed[2]).lower()
        macros = {m.name for question in queries.QUESTIONS.values() for m in question.macros}
        if name.startswith("featuredb_") or name in macros.union(each.name for each in RELATIONS):
            raise SQLError(f"{name} is the database's own and stays as it is: name yours otherwise")


_NOT_HELD = (
    "bignum",
    "bit",
    "interval",
    "time with time zone",
    "uhugeint",
    "union",
)
"""Types that Python, Parquet or Arrow has no equal of."""


def fetched(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    """The rows. Raises DuckDB's exceptions.

    A column that Python or Parquet cannot hold is text, as DuckDB spells it: intervals, bits, days
    before the year 1 or after 9999.
    """
    names, held = relation.columns, [not _has_other(kind) for kind in relation.types]
    if not all(held):
        # By position: two columns may have one name.
        columns = [f"c{i}" if each else f"CAST(c{i} AS VARCHAR)" for i, each in enumerate(held)]
        every = ", ".join(f"c{i}" for i in range(len(names)))
        statement = f"SELECT {', '.join(columns)} FROM featuredb_rows AS t({every})"
        relation = cast("duckdb.DuckDBPyRelation", relation.query("featuredb_rows", statement))
    table = relation.to_arrow_table().rename_columns(names)
    for i, column in enumerate(table.columns):
        if not _in_range(column):
            table = table.set_column(i, names[i], _as_text(column))
    return table


def _has_other(kind: Any) -> bool:
    if kind.id in ("list", "array", "struct", "map"):
        return any(_has_other(inner) for _, inner in kind.children if not isinstance(inner, int))
    return kind.id in _NOT_HELD


def _in_range(column: pa.ChunkedArray) -> bool:
    """Whether Python's dates can say what is in it."""
    if "date" not in str(column.type) and "timestamp" not in str(column.type):
        return True
    try:
        column.to_pylist()
    except (OverflowError, ValueError):
        return False
    return True


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import duckdb
    import pyarrow as pa

    with duckdb.connect() as connection:
        relation = connection.from_arrow(pa.table({"c": column}))
        return relation.project("CAST(c AS VARCHAR) AS c").to_arrow_table().column("c")


def _register(cursor: duckdb.DuckDBPyConnection, name: str, table: Any) -> None:
    """Make a user's table known to one connection."""
    import duckdb

    taken = "SELECT 1 FROM duckdb_tables() WHERE table_name = ? UNION SELECT 1 FROM duckdb_views() "
    if cursor.execute(taken + "WHERE view_name = ?", [name, name]).fetchall():
        raise SQLError(f"the database has {name!r} itself: call your table something else")
    for method in ("arrow", "to_arrow"):  # an answer, polars
        table = getattr(table, method)() if hasattr(table, method) else table
    try:
        cursor.register(name, table)
    except (duckdb.Error, TypeError) as error:
        raise SQLError(
            f"{name!r} is {type(table).__name__}: give a pandas or polars frame or an Arrow table"
        ) from error


QUESTION = Question("sql", Rows, "sql")
