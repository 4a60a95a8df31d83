"""Monitors: the rules there are, how often each fires, and its alarms in their texts."""

from __future__ import annotations

from featuredb.errors import QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel, Spelling, call
from featuredb.explorer.site import Site, WebPage
from queries.catalog import literals
from queries.replay import rule_of

_SHOWN = 50


def page(site: Site, asked: Address) -> WebPage:
    """All monitors, and the rate and the alarms of the one, or of the rule, that is asked about."""
    rule, by, where = asked.text("rule"), asked.text("by") or None, asked.text("where") or None
    names = site.database.monitors.table.column("monitor").to_pylist()
    listed = Panel(
        "monitors",
        "Monitors",
        lambda: site.database.monitors,
        Spelling(call("monitor list", site.name, (), {}), "db.monitors", "FROM monitors"),
    )
    values = {"names": names, "rule": rule}
    if not rule:
        missing = "Give a monitor, or a rule." if by or where else ""
        return WebPage("monitors.html", "Monitors", (listed,), values, missing=missing)
    sql = (
        f"FROM alarms({literals.text(rule)}, window_size := 16) LIMIT {_SHOWN}"
        if rule in names and not where
        else ""
    )
    options = {"where": where, "window": 16, "k": _SHOWN}
    rate = Panel(
        "rate",
        "How often it fires",
        lambda: site.database.calibrate(rule, by=by, where=where),
        site.spelling("monitor calibrate", "calibrate", (rule,), {"by": by, "where": where}),
    )
    alarms = Panel(
        "alarms",
        "Alarms",
        lambda: site.database.replay(rule, where=where, window=16, k=_SHOWN),
        site.spelling("monitor replay", "replay", (rule,), options, sql=sql),
    )
    panels = (alarms, rate, listed) if _can_be_read(site, rule) else (alarms, listed)
    return WebPage("monitors.html", "Monitors", panels, values)


def _can_be_read(site: Site, rule: str) -> bool:
    """Where a rule cannot, one panel says why."""
    try:
        rule_of(site.store, rule)
    except QueryError:
        return False
    return True
