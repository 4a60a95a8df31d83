"""Two features side by side, or two SAEs."""

from __future__ import annotations

from featuredb.errors import QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel, literal
from featuredb.explorer.site import Site, WebPage
from queries.answers import Rows

_PAIRS = """SELECT n.sae || '/' || n.feature_id AS feature,
    n.neighbor_sae || '/' || n.neighbor_id AS nearest,
    n.score AS cosine, a.density, b.density AS its_density,
    [t.token FOR t IN a.top_tokens] AS fires_on, [t.token FOR t IN b.top_tokens] AS it_fires_on
FROM (
    SELECT * FROM neighbors WHERE sae = {a} AND neighbor_sae = {b}
    QUALIFY row_number() OVER (PARTITION BY feature_id ORDER BY score DESC, neighbor_id) = 1
) AS n
JOIN features AS a ON a.sae = n.sae AND a.feature_id = n.feature_id
JOIN features AS b ON b.sae = n.neighbor_sae AND b.feature_id = n.neighbor_id
ORDER BY cosine {order}, n.feature_id LIMIT {k}"""


def page(site: Site, asked: Address) -> WebPage:
    """`a` and `b`: two features, or two names of SAEs."""
    a, b, k = asked.text("a"), asked.text("b"), asked.whole("k", 3, 1, 50)
    names = [sae.name for sae in site.database.saes]
    values = {"a": a, "b": b, "saes": names}
    if not (a and b):
        missing = "Give another feature, or another SAE, to compare with." if a or b else ""
        return WebPage("compare.html", "Compare", (), values, missing=missing)
    if a in names and b in names:
        return WebPage("compare.html", f"{a} and {b}", _saes(site, a, b), values)
    if a in names or b in names:
        raise QueryError("compare two features, or two SAEs, not one of each")
    panel = Panel(
        "compare",
        "Side by side",
        lambda: site.database.compare(a, b, k),
        site.spelling("compare", "compare", (a, b), {"k": k}),
    )
    return WebPage("compare.html", f"{a} and {b}", (panel,), values)


def _saes(site: Site, a: str, b: str) -> tuple[Panel, ...]:
    """The SAEs' sizes, and what each feature of one has nearest in the other."""
    summary = (
        "SELECT sae, count(*) AS features, count(*) FILTER (count = 0) AS never_fire, "
        "median(density) AS median_density, median(max_activation) AS median_maximum "
        f"FROM features WHERE sae IN ({literal(a)}, {literal(b)}) GROUP BY sae ORDER BY sae"
    )
    statements = {"saes": ("Both SAEs", summary)}
    for name, title, order in (
        ("alike", "Most alike", "DESC"),
        ("alone", "Of the first, least like any of the second", "ASC"),
    ):
        statements[name] = (
            title,
            _PAIRS.format(a=literal(a), b=literal(b), order=order, k=20),
        )
    return tuple(
        Panel(
            name,
            title,
            lambda sql=sql: Rows(site.database.sql(sql).to_arrow_table()),  # type: ignore[misc]
            site.sql(sql),
        )
        for name, (title, sql) in statements.items()
    )
