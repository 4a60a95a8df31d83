"""A SQL console that only reads, with the cookbook beside it."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from featuredb.explorer.address import Address
from featuredb.explorer.console import MOST_ROWS, SECONDS, CappedRows
from featuredb.explorer.panel import Panel, Spelling, call
from featuredb.explorer.site import Site, WebPage
from featuredb.render import numbers
from featuredb.render.view import Heading, Records, View


def page(site: Site, asked: Address) -> WebPage:
    """The rows of a statement, what can be asked, and examples."""
    query = asked.raw("q")
    schema = Panel(
        "schema",
        "Views and macros",
        site.database.schema,
        Spelling(call("sql", site.name, (), {}), "db.schema()"),
        lazy=True,
    )
    panels = [schema]
    if query.strip():
        rows = Panel("rows", "Rows", lambda: site.console.ask(query), site.sql(query), shown=_rows)
        panels = [rows, schema]
    values = {"query": query, "recipes": recipes(), "seconds": SECONDS, "rows": MOST_ROWS}
    return WebPage("sql.html", "SQL", tuple(panels), values, lasting=not query.strip())


def _rows(rows: CappedRows) -> View:
    count = numbers.plural(len(rows), "row")
    return View([[Heading(f"the first {count}" if rows.more else count), Records(rows.table)]])


@cache
def recipes() -> list[tuple[str, list[tuple[str, str]]]]:
    """(chapter, (question, statement) of each) of the cookbook."""
    text = files("featuredb.explorer").joinpath("cookbook.md").read_text(encoding="utf-8")
    chapters = []
    for chapter in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = chapter.partition("\n")
        found = re.findall(r"^### (.+?)\n.*?```sql\n(.*?)```", rest, re.MULTILINE | re.DOTALL)
        if found:
            chapters.append((title, [(name, statement.strip()) for name, statement in found]))
    return chapters
