"""Macros of the catalogs that this process made last: DuckDB copies them instead of parsing them.

To make all macros takes DuckDB 0.3 seconds of CPU: it parses each and binds it once, to see whether
it can be. To copy them takes 5 ms. They are kept in databases in memory, one for each set of texts,
of a DuckDB in which catalogs are built.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featuredb.store.files.scratch import scratch_folder, spill_folder
from queries.catalog import literals

if TYPE_CHECKING:
    import duckdb

_MOST = 8
"""Sets that are kept, of 2 MB each: those that were used last."""


@dataclass
class _Made:
    """The DuckDB of a process. kept: a set's macros, DDL by name, by the set's database."""

    connection: duckdb.DuckDBPyConnection
    kept: dict[str, Mapping[str, str]] = field(default_factory=dict)
    number: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)


_made: dict[int, _Made] = {}
"""By the process's id: a forked process has a DuckDB of its own."""


@dataclass(frozen=True)
class Workshop:
    """A new database in memory to build a catalog in, the current one of its connection."""

    connection: duckdb.DuckDBPyConnection
    database: str
    _made: _Made

    def copy_most(self, macros: Mapping[str, str]) -> Collection[str]:
        """Copy the set most like `macros`, DDL by name. Returns the names that are right now."""
        kept = self._made.kept
        equal = {
            database: {name for name, text in theirs.items() if macros.get(name) == text}
            for database, theirs in kept.items()
        }
        if not equal:
            return ()
        best = max(equal, key=lambda database: len(equal[database]))
        kept[best] = kept.pop(best)
        self._made.connection.execute(f"COPY FROM DATABASE {best} TO {self.database}")
        return equal[best]

    def copy_to(self, path: Path) -> None:
        """Copy the database to a new file. One write: each statement would be another."""
        self.connection.execute(f"ATTACH {literals.text(str(path))} AS handed (TYPE duckdb)")
        self.connection.execute(f"COPY FROM DATABASE {self.database} TO handed")
        self.connection.execute("CHECKPOINT handed")
        self.connection.execute("DETACH handed")

    def keep(self, macros: Mapping[str, str]) -> None:
        """Keep the database for its macros, which are `macros`. Nothing else stays in it."""
        others = "SELECT 'VIEW', view_name FROM duckdb_views() WHERE NOT internal "
        others += f"AND database_name = '{self.database}' UNION ALL SELECT 'TABLE', table_name "
        others += f"FROM duckdb_tables() WHERE database_name = '{self.database}'"
        for kind, name in self.connection.execute(others).fetchall():
            self.connection.execute(f"DROP {kind} {literals.name(name)}")
        self._made.kept[self.database] = macros


@contextmanager
def workshop() -> Iterator[Workshop]:
    """Somewhere to build a catalog in. One at a time in a process."""
    made = _of_process()
    with made.lock:
        made.number += 1
        database = f"catalog_{made.number}"
        try:
            made.connection.execute(f"ATTACH ':memory:' AS {database}")
            with made.connection.cursor() as connection:
                connection.execute(f"USE {database}")
                yield Workshop(connection, database, made)
            if database not in made.kept:
                made.connection.execute(f"DETACH {database}")
            if len(made.kept) > _MOST:
                oldest = next(iter(made.kept))
                del made.kept[oldest]
                made.connection.execute(f"DETACH {oldest}")
        except BaseException:
            # DuckDB may not use a database again that it could not write.
            _made.pop(os.getpid(), None)
            raise


def copy_all(connection: duckdb.DuckDBPyConnection, macros: Mapping[str, str]) -> Collection[str]:
    """Copy `macros`, DDL by name, into another DuckDB in memory, where they are all kept.

    Returns the names of those that were copied: all or none.
    """
    made = _made.get(os.getpid())
    if made is None:
        return ()
    with made.lock, scratch_folder() as folder:
        same = next((name for name, theirs in made.kept.items() if theirs == macros), None)
        if same is None:
            return ()
        path = literals.text(str(folder / "macros.duckdb"))
        made.connection.execute(f"ATTACH {path} AS handed")
        made.connection.execute(f"COPY FROM DATABASE {same} TO handed")
        made.connection.execute("DETACH handed")
        connection.execute(f"ATTACH {path} AS handed (READ_ONLY)")
        connection.execute("COPY FROM DATABASE handed TO memory")
        connection.execute("DETACH handed")
    return macros.keys()


def _of_process() -> _Made:
    import duckdb

    process = os.getpid()
    if process not in _made:
        connection = duckdb.connect(":memory:")
        connection.execute("SET temp_directory = ?", [str(spill_folder() or "")])
        # It is given hundreds of statements that only make or comment, and nothing to compute.
        connection.execute("SET threads = 1")
        connection.execute("PRAGMA disable_optimizer")
        _made.setdefault(process, _Made(connection))
    return _made[process]
