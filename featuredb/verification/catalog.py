"""``catalog.duckdb``: that it opens, that its views answer, that it counts what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from featuredb.errors import first_line
from featuredb.store.files.location import LocalFiles
from featuredb.store.files.scratch import scratch_folder
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem
from queries.catalog.literals import name, text
from queries.connection import NO_EXTENSIONS, bound


def check_catalog(
    layout: Layout, snapshot: Snapshot, memory: int, *, ask: bool
) -> Iterator[Problem]:
    """memory: bytes to work in. ask: also ask its views, which is of use only while the files they
    read are sound. Nothing is checked where no temporary file can be written."""
    path = layout.catalog.name
    try:
        whole = layout.catalog.read_bytes()
    except FileNotFoundError:
        yield Problem(path, "is missing", remedy(path))
        return
    except OSError as error:
        yield Problem(path, f"cannot be read ({error.strerror})", remedy(path))
        return
    # DuckDB opens a file only once per process. If this process has the catalog open, a query would
    # read the old content, and the memory limit would apply to it. So a copy is queried.
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(scratch_folder()) / path
            copy.write_bytes(whole)
        except OSError:
            return
        yield from _check(copy, layout, snapshot, memory, ask=ask)


def _check(
    copy: Path, layout: Layout, snapshot: Snapshot, memory: int, *, ask: bool
) -> Iterator[Problem]:
    """Check a copy that no other process has open."""
    import duckdb

    path = layout.catalog.name
    rows = sum(segment.rows for segment in snapshot.segments)
    try:
        with duckdb.connect(str(copy), read_only=True, config=NO_EXTENSIONS) as connection:
            # Half, because DuckDB does not count all of its memory.
            bound(connection, memory // 2)
            connection.execute(
                f"SET VARIABLE featuredb_root = {text(LocalFiles(layout.root).duckdb_root)}"
            )
            views = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY view_name"
            known = [view for (view,) in connection.execute(views).fetchall()]
            if ask:
                for view in known:
                    connection.execute(f"FROM {name(view)} LIMIT 1").fetchall()
                counted = connection.execute("SELECT count(*) FROM activations").fetchall()
                if counted != [(rows,)]:
                    what = f"counts {counted[0][0]:,} activations, should count {rows:,}"
                    yield Problem(path, what, remedy(path))
    except duckdb.OutOfMemoryException:
        return  # not damage: every file behind the views was read before
    except duckdb.Error as error:
        yield Problem(path, f"cannot be read ({first_line(error)})", remedy(path))
