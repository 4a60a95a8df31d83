"""Where several features fire: sets of tokens, contexts or documents."""

from __future__ import annotations

from typing import Any

from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel
from featuredb.explorer.site import Site, WebPage
from queries.matching import UNITS

_GROUPS = ("all", "any", "none")


def page(site: Site, asked: Address) -> WebPage:
    """What satisfies the conditions of the form."""
    groups: dict[str, Any] = {name: asked.several(name) for name in _GROUPS}
    unit = asked.choice("unit", UNITS)
    values = {"units": UNITS, "unit": unit, "groups": _GROUPS}
    if not (groups["all"] or groups["any"]):
        given = any(asked.text(name) for name in ("none", "within", "at_least", "where", "word"))
        missing = "Give a feature that fires there: in All of, or in Any of." if given else ""
        return WebPage("find.html", "Find", (), values, missing=missing)
    within, at_least = asked.text("within"), asked.text("at_least")
    options: dict[str, Any] = {
        **groups,
        "unit": unit,
        "within": asked.whole("within", 0, 0, 10_000) if within else None,
        "ordered": asked.flag("ordered"),
        "at_least": asked.whole("at_least", 1, 1, 100) if at_least else None,
        "where": asked.text("where") or None,
        "k": asked.whole("k", 20, 1, 200),
        "token": asked.raw("word") or None,
        "window": asked.whole("window", 24, 0, 500),
    }
    panel = Panel(
        "find",
        f"{unit.capitalize()}s",
        lambda: site.database.find(**options),
        site.spelling("find", "find", (), options),
    )
    return WebPage("find.html", "Find", (panel,), values)
