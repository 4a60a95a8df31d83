"""Where a feature fires: at which places of contexts, and in which groups of documents."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from featuredb.errors import QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel, literal
from featuredb.explorer.site import Site
from featuredb.render import numbers
from featuredb.render.view import AnyColumn, BarColumn, Bars, Column, Heading, Part, Table, View
from featuredb.store.names import document_columns
from featuredb.store.store import Store
from queries.answers import Rows
from queries.catalog.literals import name as quoted

_BINS = 32
_MOST_GROUPS = 40
"""Values of a column beyond which it makes no groups."""

_SHOWN = 20


def where_it_fires(site: Site, asked: Address, feature: str) -> list[Panel]:
    """Panels of both, which a page asks for when they come near."""
    size = max((corpus.context_size for corpus in site.database.snapshot.corpora), default=1)
    width = max(1, -(-size // _BINS))
    places = (
        f"SELECT CAST(floor(token_index / {width}) * {width} AS INTEGER) AS place, "
        "count(*) AS activations, max(activation) AS max_activation "
        f"FROM feature_activations({literal(feature)}) GROUP BY place ORDER BY place"
    )
    panels = [
        Panel(
            "places",
            "Where in the context",
            lambda: _rows(site, places),
            site.sql(places),
            lazy=True,
            shown=lambda rows: _places(rows, width, size),
        )
    ]
    columns = group_columns(site.store, site.database.sql)
    if columns:
        column = asked.choice("group", columns)
        groups = by_group(feature, column)
        panels.append(
            Panel(
                "groups",
                f"By {column}",
                lambda: _rows(site, groups),
                site.sql(groups),
                lazy=True,
                shown=lambda rows: _groups(rows, column, columns),
            )
        )
    elif asked.text("group"):
        raise QueryError("no column of the documents makes groups")
    return panels


def by_group(feature: str, column: str) -> str:
    """The statement that has, of each value of a column, in how many documents a feature fires."""
    return (
        "WITH fired AS (SELECT document_id, count(*) AS n, max(activation) AS most "
        f"FROM feature_activations({literal(feature)}) JOIN contexts USING (context_id) "
        f"GROUP BY document_id) SELECT CAST(d.{quoted(column)} AS VARCHAR) AS value, "
        "count(f.document_id) AS fires_in, count(*) AS documents, "
        "count(f.document_id) / count(*) AS share, CAST(coalesce(sum(f.n), 0) AS BIGINT) "
        "AS activations, max(f.most) AS max_activation "
        "FROM documents AS d LEFT JOIN fired AS f USING (document_id) "
        "GROUP BY value ORDER BY share DESC, value"
    )


@lru_cache(maxsize=8)
def group_columns(store: Store, sql: Any) -> tuple[str, ...]:
    """The columns of documents whose values make groups: at least 2, and few."""
    names = [name for name in document_columns(store.snapshot) if name != "source"]
    if not names:
        return ()
    counts = ", ".join(f"approx_count_distinct({quoted(name)})" for name in names)
    (found,) = sql(f"SELECT {counts} FROM documents").fetchall()
    return tuple(n for n, c in zip(names, found, strict=True) if 2 <= c <= _MOST_GROUPS)


def _rows(site: Site, statement: str) -> Rows:
    return Rows(site.database.sql(statement).to_arrow_table())


def _places(rows: Rows, width: int, size: int) -> View:
    counts = [0] * -(-size // width)
    for row in rows:
        counts[row.place // width] = row.activations
    if not len(rows):
        return View([[Heading("it never fires on the recorded tokens")]])
    title = f"activations at each {width} tokens of a context, log scale"
    return View([[Bars(title, "activation", counts, 0, len(counts) * width)]])


def _groups(rows: Rows, column: str, others: tuple[str, ...]) -> View:
    shown = list(rows)[:_SHOWN]
    cells = [f"{numbers.count(r.fires_in)} of {numbers.count(r.documents)}" for r in shown]
    columns: list[AnyColumn] = [
        Column(column, [numbers.MISSING if r.value is None else r.value for r in shown]),
        Column("documents", cells, right=True),
        BarColumn("share", [row.share for row in shown]),
        Column("tokens", [numbers.count(r.activations) for r in shown], right=True),
        Column("max", numbers.aligned([r.max_activation for r in shown]), right=True),
    ]
    parts: list[Part] = [Table(columns, more=len(rows) - len(shown))]
    if len(others) > 1:
        parts.append(Heading("", "", f"other columns: group={', '.join(others)}"))
    return View([parts])
