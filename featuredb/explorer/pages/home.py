"""What is in the database, and where to begin."""

from __future__ import annotations

from featuredb.explorer.address import Address
from featuredb.explorer.panel import Counted, Panel
from featuredb.explorer.site import Site, WebPage
from featuredb.render.view import Facts, Heading, View
from queries.answers import Rows
from queries.info import DatabaseInfo
from queries.show import feature_sizes, feature_table

_ORDERS = {
    "anything": "hash(sae, feature_id)",
    "strongest": "max_activation * decoder_norm DESC",
    "densest": "density DESC",
    "rarest": "count",
}
_FEW = 20
"""Activations below which a feature is no place to begin."""


def page(site: Site, asked: Address) -> WebPage:
    """The database, some of its features, its provenance."""
    order = asked.choice("order", tuple(_ORDERS))
    offset, k = asked.whole("offset", 0, 0, 10**9), asked.whole("k", 20, 1, 200)
    statement = features_to_begin(order, k, offset)
    info = site.spelling("info", "info")
    listed = Counted(lambda: Rows(site.database.sql(statement).to_arrow_table()))
    panels = (
        Panel("info", "This database", site.database.info, info, shown=held),
        Panel(
            "features",
            "Features",
            listed,
            site.sql(statement),
            shown=listed_features,
        ),
        Panel(
            "provenance",
            "Provenance",
            site.database.info,
            info,
            shown=_all_of,
            folded=True,
            lazy=True,
        ),
    )
    values = {"orders": tuple(_ORDERS), "order": order, "offset": offset, "k": k, "listed": listed}
    return WebPage("home.html", site.database.snapshot.model.id, panels, values)


def features_to_begin(order: str = "anything", k: int = 20, offset: int = 0) -> str:
    """The statement that lists features in some order."""
    by = f"{_ORDERS[order]}, sae, feature_id"
    # Chosen first, by numbers alone: the lists of all features take four times as long to read.
    return (
        f"WITH chosen AS (SELECT sae, feature_id FROM features WHERE count >= {_FEW} "
        f"ORDER BY {by} LIMIT {k} OFFSET {offset}) "
        f"SELECT CAST({offset} + row_number() OVER (ORDER BY {by}) AS INTEGER) AS rank, "
        "sae, feature_id, density, max_activation, "
        "[t.token FOR t IN top_tokens] AS top_tokens, label "
        "FROM chosen JOIN features USING (sae, feature_id) "
        "LEFT JOIN (SELECT sae, feature_id, text AS label FROM labels WHERE preferred) "
        "USING (sae, feature_id) ORDER BY rank"
    )


def held(info: DatabaseInfo) -> View:
    """All but its last line, which is about the command line."""
    return View(list(info.view())[:-1])


def _all_of(info: DatabaseInfo) -> View:
    return View([[Facts(info.data)]])


def listed_features(rows: Rows) -> View:
    """As every list of features."""
    listed = list(rows)
    if not listed:
        return View([[Heading("no more features")]])
    return View([[feature_table(listed, feature_sizes(listed))]])
