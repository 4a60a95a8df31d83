"""``catalog.duckdb``: that it opens, that its views answer, that it counts what is stored."""

from __future__ import annotations

from collections.abc import Iterator

from featuredb.catalog.connect import bound
from featuredb.catalog.literals import name, text
from featuredb.layout import Layout
from featuredb.snapshot import Snapshot
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem
from featuredb.verification.scope import first_line


def check_catalog(
    layout: Layout, snapshot: Snapshot, memory: int, *, ask: bool
) -> Iterator[Problem]:
    """memory: bytes to work in. ask: also ask its views, which is of use only while the files they
    read are sound."""
    import duckdb

    path = layout.catalog.name
    if not layout.catalog.exists():
        yield Problem(path, "is missing", remedy(path))
        return
    rows = sum(segment.rows for segment in snapshot.segments)
    try:
        with duckdb.connect(str(layout.catalog), read_only=True) as connection:
            # Half, as DuckDB counts not all that it takes.
            bound(connection, memory // 2)
            connection.execute(f"SET VARIABLE featuredb_root = {text(str(layout.root))}")
            views = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY view_name"
            known = [view for (view,) in connection.execute(views).fetchall()]
            if ask:
                for view in known:
                    connection.execute(f"FROM {name(view)} LIMIT 1").fetchall()
                counted = connection.execute("SELECT count(*) FROM activations").fetchall()
                if counted != [(rows,)]:
                    said = f"counts {counted[0][0]:,} activations, should count {rows:,}"
                    yield Problem(path, said, remedy(path))
    except duckdb.OutOfMemoryException:
        return  # which is no damage; every file behind the views was read before
    except duckdb.Error as error:
        yield Problem(path, f"cannot be read ({first_line(error)})", remedy(path))
