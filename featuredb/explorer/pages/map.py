"""All features in the plane, near ones together."""

from __future__ import annotations

import json

import numpy as np

from featuredb.errors import QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.panel import Panel, literal
from featuredb.explorer.site import Site, WebPage
from featuredb.render.characters import label
from featuredb.store.names import sae_named
from queries.answers import Rows

COLUMNS = (
    "density",
    "count",
    "max_activation",
    "mean_activation",
    "n_documents",
    "decoder_norm",
    "output_score",
    "kl",
    "collateral",
)
"""What points are colored by: numbers of the views features and effects."""

_TOKENS = 4


def page(site: Site, asked: Address) -> WebPage:
    """The map of one SAE. It is drawn by the page's script."""
    names = [sae.name for sae in site.database.saes]
    sae = asked.text("sae", names[0] if names else "")
    sae_named(site.database.snapshot, sae)
    values = {"saes": names, "sae": sae, "columns": COLUMNS, "placed": placed(site, sae)}
    if not values["placed"]:
        return WebPage("map.html", "Map", (), values)
    statement = points(sae)
    panel = Panel(
        "map",
        "Where features are",
        lambda: Rows(site.database.sql(statement).to_arrow_table()),
        site.sql(statement),
        folded=True,
        lazy=True,
    )
    return WebPage("map.html", f"Map of {sae}", (panel,), values)


def placed(site: Site, sae: str) -> bool:
    """Whether the SAE's features have a place."""
    found = site.database.sql("FROM feature_map WHERE sae = ? LIMIT 1", [sae]).fetchall()
    return bool(found)


def points(sae: str) -> str:
    """The statement that has each feature's place and numbers, by feature."""
    of_features, of_effects = COLUMNS[:6], COLUMNS[6:]
    columns = ", ".join([*(f"f.{c}" for c in of_features), *(f"e.{c}" for c in of_effects)])
    return (
        f"SELECT m.sae, m.feature_id, m.x, m.y, {columns}, "
        f"[t.token FOR t IN f.top_tokens[:{_TOKENS}]] AS top_tokens "
        "FROM feature_map AS m JOIN features AS f USING (sae, feature_id) "
        "LEFT JOIN effects AS e USING (sae, feature_id) "
        f"WHERE m.sae = {literal(sae)} ORDER BY m.feature_id"
    )


def packed_of(site: Site, asked: Address) -> bytes:
    """`packed` of the SAE that an address names. Raises `QueryError` where it has no map."""
    sae = asked.text("sae")
    data = packed(Rows(site.database.sql(points(sae)).to_arrow_table()))
    if data is None:
        raise QueryError(f"{sae!r} has no map: make it with featuredb measure {site.name} --map")
    return data


def packed(rows: Rows) -> bytes | None:
    """Rows of `points` as a page reads them, None for none.

    The length of a JSON header (uint32, little-endian), the header, padded by spaces to four bytes:
    n, sae, columns, tokens (their bytes). Then float32 [n] for x, y, feature_id as uint32 [n], and
    float32 [n] for each column, NaN for null. Then the features' tokens, UTF-8: tokens apart by
    tabs, features by line feeds.
    """
    table = rows.table
    if not len(table):
        return None
    lines = [
        "\t".join(label(token).replace("\n", " ").replace("\t", " ") for token in tokens or [])
        for tokens in table.column("top_tokens").to_pylist()
    ]
    tokens = "\n".join(lines).encode()
    columns = {name: table.column(name).to_numpy().astype("<f4") for name in ("x", "y", *COLUMNS)}
    shown = [name for name in COLUMNS if np.isfinite(columns[name]).any()]
    about = {"n": len(table), "columns": shown, "tokens": len(tokens)}
    about["sae"] = table.column("sae")[0].as_py()
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 4)
    numbers = table.column("feature_id").to_numpy().astype("<u4")
    arrays = [columns["x"], columns["y"], numbers, *(columns[name] for name in shown)]
    packed = b"".join(array.tobytes() for array in arrays)
    return len(header).to_bytes(4, "little") + header + packed + tokens
