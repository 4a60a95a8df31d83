"""All features in the plane, near ones together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.database import Database
from featuredb.errors import QueryError
from featuredb.explorer.address import Address, address
from featuredb.explorer.panel import Panel, literal
from featuredb.explorer.site import Site, WebPage
from featuredb.render.characters import label, neutralize
from featuredb.store.names import sae_named
from queries.answers import Rows
from queries.catalog.literals import name as quoted
from queries.catalog.summaries import LABELS

COLUMNS = (
    "density",
    "count",
    "max_activation",
    "mean_activation",
    "n_documents",
    "decoder_norm",
)
"""What points are colored by as soon as they are there. Others are fetched once they are chosen."""

_TOKENS = 4
_LABEL = 100
"""Characters of a label."""

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE")
_LABELS = "(SELECT * FROM labels WHERE preferred)"
_VIEWS = (("", "features"), ("effect ", "effects"), ("label ", _LABELS))
"""(what its columns' names begin with, relation) of each that has a row a feature at most."""
_LEFT_OUT = ("sae", "feature_id", "text", "label_id", "created", "measured", "ablated")
_COLORED = 7
"""Values of a text column that have a color of their own. All others share one."""
_LONGEST = 40


@dataclass(frozen=True)
class MapColumn:
    """What points can be colored by, and the statement that has it as `value`, by feature."""

    name: str
    statement: str


def other_columns(database: Database, sae: str) -> list[MapColumn]:
    """Besides `COLUMNS`: numbers and texts of the views features, effects, labels and scores.

    Only those of which a feature of the SAE has a value. Scores: of preferred labels, by scorer.
    """
    found = []
    for before, relation in _VIEWS:
        described = database.sql(
            f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {relation})"
        )
        names = [
            name
            for name, kind in described.fetchall()
            if (kind in _NUMBERS or kind == "VARCHAR")
            and name not in _LEFT_OUT
            and (before or name not in COLUMNS)
        ]
        counts = ", ".join(f"count({quoted(name)})" for name in names)
        (held,) = database.sql(f"SELECT {counts} FROM {relation} WHERE sae = ?", [sae]).fetchall()
        for name, count in zip(names, held, strict=True):
            if count:
                found.append(_column(before + name, relation, name, sae))
    scorers = database.sql("SELECT DISTINCT scorer FROM scores WHERE sae = ? ORDER BY 1", [sae])
    for (scorer,) in scorers.fetchall():
        relation = (
            f"(SELECT sae, feature_id, avg(value) AS value FROM scores SEMI JOIN {_LABELS} "
            f"USING (sae, feature_id, label_id) WHERE scorer = {literal(scorer)} GROUP BY ALL)"
        )
        found.append(_column(f"score {scorer}", relation, "value", sae))
    return found


def _column(name: str, relation: str, column: str, sae: str) -> MapColumn:
    return MapColumn(
        name,
        f"SELECT m.sae, m.feature_id, v.{quoted(column)} AS value FROM feature_map AS m "
        f"LEFT JOIN {relation} AS v USING (sae, feature_id) "
        f"WHERE m.sae = {literal(sae)} ORDER BY m.feature_id",
    )


def page(site: Site, asked: Address) -> WebPage:
    """The map of one SAE. It is drawn by the page's script."""
    names = [sae.name for sae in site.database.saes]
    sae = asked.text("sae", names[0] if names else "")
    sae_named(site.database.snapshot, sae)
    if site.placing.status()["state"] == "ready" and not placed(site, sae):
        site.move_on()
    values = {"saes": names, "sae": sae, "placed": placed(site, sae)}
    if not values["placed"]:
        values |= {"placing": site.placing.status(), "writable": site.placing.possible}
        return WebPage("map.html", "Map", (), values, lasting=False)
    panels = [_rows(site, "map", "Where features are", points(sae))]
    color = asked.text("color")
    if color and color not in COLUMNS:
        chosen = _named(site, sae, color)
        panels.append(_rows(site, "color", f"Color: {chosen.name}", chosen.statement))
    return WebPage("map.html", f"Map of {sae}", tuple(panels), values)


def _rows(site: Site, name: str, title: str, statement: str) -> Panel:
    return Panel(
        name,
        title,
        lambda: Rows(site.database.sql(statement).to_arrow_table()),
        site.sql(statement),
        folded=True,
        lazy=True,
    )


def _named(site: Site, sae: str, name: str) -> MapColumn:
    """Raises `QueryError` for none of the SAE's."""
    columns = {column.name: column for column in other_columns(site.database, sae)}
    if name not in columns:
        known = ", ".join((*COLUMNS, *columns))
        raise QueryError(f"the map has no column {name!r}: it has {known}")
    return columns[name]


def placed(site: Site, sae: str) -> bool:
    """Whether the SAE's features have a place."""
    found = site.database.sql("FROM feature_map WHERE sae = ? LIMIT 1", [sae]).fetchall()
    return bool(found)


def points(sae: str) -> str:
    """The statement that has each feature's place and numbers, by feature."""
    columns = ", ".join(f"f.{column}" for column in COLUMNS)
    return (
        f"SELECT m.sae, m.feature_id, m.x, m.y, {columns}, "
        f"[t.token FOR t IN f.top_tokens[:{_TOKENS}]] AS top_tokens, p.label "
        f"FROM feature_map AS m JOIN features AS f USING (sae, feature_id) {LABELS} "
        f"WHERE m.sae = {literal(sae)} ORDER BY m.feature_id"
    )


def packed_of(site: Site, asked: Address) -> bytes:
    """`packed` of the SAE that an address names, or `packed_column` where it names a column.

    Raises `QueryError` where there is none.
    """
    sae, name = asked.text("sae"), asked.text("column")
    if name:
        return packed_column(site.database, _named(site, sae, name))
    data = packed(
        site.database, sae, lambda _, name: address("/map/points", {"sae": sae, "column": name})
    )
    if data is None:
        raise QueryError(f"{sae!r} has no map: make it with featuredb measure {site.name} --map")
    return data


def packed(database: Database, sae: str, address_of: Callable[[int, str], str]) -> bytes | None:
    """Rows of `points` as a page reads them, None for none. address_of: of each other column.

    The length of a JSON header (uint32, little-endian), the header, padded by spaces to four bytes:
    n, sae, columns, others ([name, address] of each), words (their bytes). Then float32 [n] for x,
    y, feature_id as uint32 [n], and float32 [n] for each column, NaN for null. Then a line for each
    feature, UTF-8: its label, or nothing, and its tokens, apart by tabs.
    """
    table = database.sql(points(sae)).to_arrow_table()
    if not len(table):
        return None
    names = (table.column(name).to_pylist() for name in ("label", "top_tokens"))
    lines = [
        "\t".join([neutralize(_cut(name or "")), *map(label, tokens or [])])
        for name, tokens in zip(*names, strict=True)
    ]
    words = "\n".join(lines).encode()
    columns = {name: _floats(table.column(name)) for name in ("x", "y", *COLUMNS)}
    shown = [name for name in COLUMNS if np.isfinite(columns[name]).any()]
    others = [column.name for column in other_columns(database, sae)]
    about = {
        "n": len(table),
        "columns": shown,
        "others": [[name, address_of(i, name)] for i, name in enumerate(others)],
        "words": len(words),
        "sae": sae,
    }
    numbers = table.column("feature_id").to_numpy().astype("<u4")
    arrays = [columns["x"], columns["y"], numbers, *(columns[name] for name in shown)]
    return _with_header(about, arrays) + words


def _cut(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[:_LABEL]}…"


def packed_column(database: Database, column: MapColumn) -> bytes:
    """One column for the features in the order of `packed`: a header as there, float32 [n].

    values: of a text column, whose numbers are their indexes: the most frequent ones, then
    `others` if there are more. Absent for a column of numbers.
    """
    values = database.sql(column.statement).to_arrow_table().column("value")
    if not pa.types.is_string(values.type):
        return _with_header({"n": len(values)}, [_floats(values)])
    counted = pc.value_counts(pc.drop_null(values)).to_pylist()
    counted.sort(key=lambda entry: (-entry["counts"], entry["values"]))
    names = [entry["values"] for entry in counted[:_COLORED]]
    codes = pc.index_in(values, pa.array(names, values.type)).cast(pa.float64())
    if len(counted) > len(names):
        codes = pc.if_else(pc.and_(pc.is_valid(values), pc.is_null(codes)), len(names), codes)
        names.append("others")
    shown = [neutralize(name)[:_LONGEST] or "(empty)" for name in names]
    return _with_header({"n": len(values), "values": shown}, [_floats(codes)])


def _floats(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float32]]:
    """NaN for null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), "<f4")


def _with_header(about: dict[str, Any], arrays: Sequence[np.ndarray[Any, Any]]) -> bytes:
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 4)
    packed = b"".join(array.tobytes() for array in arrays)
    return len(header).to_bytes(4, "little") + header + packed
