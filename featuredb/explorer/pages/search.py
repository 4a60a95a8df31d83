"""Features found by words, and features named outright."""

from __future__ import annotations

import re

from featuredb.explorer.address import Address, feature_url
from featuredb.explorer.panel import Panel, macro
from featuredb.explorer.site import Site, WebPage

_WAYS = ("any", "tokens", "evidence", "meaning")
_MACROS = {"any": "search", "tokens": "search", "evidence": "evidence"}


def page(site: Site, asked: Address) -> WebPage:
    """The features of a query. One that names a feature leads to its page."""
    query = asked.text("q")
    by = asked.choice("by", _WAYS)
    k = asked.whole("k", 20, 1, 200)
    named = _named(site, query)
    if named and by == "any":
        return WebPage("search.html", query, redirect=feature_url(named))
    way = None if by == "any" else by
    named_so = _MACROS.get(by)
    sql = macro(named_so, [query], {"k": k}) if named_so else ""
    spelling = site.spelling("search", "search", (query,), {"k": k, "by": way}, sql=sql)
    panels = (Panel("search", "Features", lambda: site.database.search(query, k, way), spelling),)
    return WebPage(
        "search.html", query or "Search", panels if query else (), {"ways": _WAYS, "by": by}
    )


def _named(site: Site, query: str) -> str:
    """The feature that the query is the name of."""
    named = re.fullmatch(r"(?:(.+)/)?([0-9]{1,18})", query)
    if named is None:
        return ""
    saes = site.database.saes
    name = named[1] or (saes[0].name if len(saes) == 1 else "")
    if not any(sae.name == name for sae in saes):
        return ""
    return f"{name}/{int(named[2])}"
