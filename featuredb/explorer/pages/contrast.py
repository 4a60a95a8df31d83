"""What tells some stored texts from others."""

from __future__ import annotations

from typing import Any

from featuredb.errors import QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel
from featuredb.explorer.site import Site, WebPage
from queries.catalog import literals
from queries.contrasts.asked import POOLS
from queries.units import UNITS


def page(site: Site, asked: Address) -> WebPage:
    """Two conditions on documents, or the values of a column."""
    a, b, each = asked.text("a"), asked.text("b"), asked.text("each")
    unit, pool = asked.choice("unit", UNITS), asked.choice("pool", POOLS)
    values = {"units": UNITS, "unit": unit, "pools": POOLS, "pool": pool}
    columns = site.database.sql("SELECT column_name FROM (DESCRIBE documents)").fetchall()
    values["columns"] = tuple(name for (name,) in columns)
    if not (a or each):
        missing = "Give A too, which B is held against, or a column to take each value of."
        return WebPage("contrast.html", "Contrast", (), values, missing=missing if b else "")
    if a.startswith("@") or b.startswith("@"):
        raise QueryError("the page reads no files: ask `featuredb contrast`")
    k, on, covariate = asked.whole("k", 20, 1, 200), asked.text("on"), asked.text("covariate")
    options: dict[str, Any] = {
        "a": a or None,
        "b": b or None,
        "each": each or None,
        "unit": unit,
        "pool": pool,
        "k": k,
        "on": on or None,
        "covariate": covariate or (),
    }
    given = [literals.text(text) for text in (a, b) if text]
    plain = (unit, pool) == (UNITS[0], POOLS[0]) and not (each or on or covariate)
    panel = Panel(
        "contrast",
        "What tells them apart",
        lambda: site.database.contrast(**options),
        site.spelling(
            "contrast",
            "contrast",
            (),
            {name: value for name, value in options.items() if value != ()},
            sql=f"FROM contrast({', '.join(given)}, k := {k})" if plain else "",
        ),
    )
    return WebPage("contrast.html", "Contrast", (panel,), values)
