"""Cards of all features, as a site reads them: one row a feature, a few features a row group."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.database import Database
from featuredb.explorer.static.data import DataDrawing
from featuredb.render.characters import label, neutralize
from featuredb.render.view import Column, Facts, Heading, Part, Table, View
from featuredb.store.snapshot import File, Sae
from featuredb.store.store import Store
from queries.answers import Rows
from queries.catalog import literals
from queries.catalog.documents import metadata
from queries.catalog.summaries import LABELS
from queries.feature import feature_numbers
from queries.peaks import passages
from queries.show import fires_on, score_column

_FEATURES_A_FILE = 4_096
FEATURES_A_GROUP = 8
"""A page reads one group, and the file's footer, which grows with their number."""

_CONTEXTS = 10
_NEIGHBORS = 10
_SCHEMA = pa.schema([pa.field("card", pa.string(), nullable=False)])


@dataclass(frozen=True)
class CardFile:
    """Cards of features from `first`. footer: bytes at the file's end that say where rows are."""

    path: str
    first: int
    bytes: int
    footer: int


def write_cards(database: Database, store: Store, sae: Sae, folder: Path) -> list[CardFile]:
    """Write the files of one SAE, and say which there are."""
    number = [each.name for each in store.snapshot.saes].index(sae.name)
    written = []
    for first in range(0, sae.d_sae, _FEATURES_A_FILE):
        end = min(first + _FEATURES_A_FILE, sae.d_sae)
        path = folder / f"cards.{number}.{first // _FEATURES_A_FILE:04d}.parquet"
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd", write_statistics=False) as writer:
            group: list[str] = []
            for card in _cards(database, store, sae, first, end):
                group.append(json.dumps(card, ensure_ascii=False, separators=(",", ":")))
                if len(group) == FEATURES_A_GROUP:
                    writer.write_table(pa.table([pa.array(group)], schema=_SCHEMA))
                    group = []
            if group:
                writer.write_table(pa.table([pa.array(group)], schema=_SCHEMA))
        size = path.stat().st_size
        footer = pq.read_metadata(path).serialized_size + 8
        written.append(CardFile(path.name, first, size, footer))
    return written


def _cards(
    database: Database, store: Store, sae: Sae, first: int, end: int
) -> Iterator[dict[str, Any]]:
    """What the page of each feature shows, in order."""
    drawing = DataDrawing()
    contexts = _by_feature(_contexts(database, store, sae, first, end))
    derived = store.snapshot.derived
    near = {
        by: _by_feature(_neighbors(database, file, sae, first, end))
        for by, file in (
            ("decoder", derived.neighbors_decoder),
            ("encoder", derived.neighbors_encoder),
            ("co-activation", derived.coactivation),
        )
    }
    for number in range(first, end):
        numbers = feature_numbers(store, sae, number)
        (_, *facts), *rest = numbers.sections()
        row = numbers.row
        top = [label(entry["token"]) for entry in (row.top_tokens or [])[:4]]
        scale = abs(row.max_activation or 0.0)
        shown = passages(contexts.get(number, []), scale, store.texts.special)
        yield {
            "label": neutralize(numbers.labels[0]["text"]) if numbers.labels else "",
            "top": top,
            "numbers": drawing.sections(View([facts, *rest])),
            "contexts": drawing.part(shown) if shown.items else None,
            "near": [drawing.joined(_near(by, rows.get(number, []))) for by, rows in near.items()],
        }


def _near(by: str, rows: list[Any]) -> list[Part]:
    if not rows:
        return [Heading("nearest by ", by), Facts({"": "none"})]
    names = [f"{row.neighbor_sae}/{row.neighbor_id}" for row in rows]
    score = score_column("jaccard" if by == "co-activation" else "cosine", rows, "score")
    return [
        Heading("nearest by ", by),
        Table([Column("feature", names, features=True), score, fires_on(rows, 4)]),
    ]


def _by_feature(table: pa.Table) -> dict[int, list[Any]]:
    return {
        int(number): list(rows)
        for number, rows in groupby(Rows(table), key=lambda row: row["feature_id"])
    }


def _contexts(database: Database, store: Store, sae: Sae, first: int, end: int) -> pa.Table:
    return database.sql(
        f"""SELECT w.*{metadata(store.snapshot, "d")}
        FROM windows AS w JOIN documents AS d USING (document_id)
        WHERE w.sae = ? AND w.feature_id >= ? AND w.feature_id < ? AND w.rank <= {_CONTEXTS}
        ORDER BY w.feature_id, w.rank""",
        [sae.name, first, end],
    ).to_arrow_table()


def _neighbors(database: Database, file: File, sae: Sae, first: int, end: int) -> pa.Table:
    return database.sql(
        f"""SELECT n.feature_id, n.neighbor_sae, n.neighbor_id, n.score,
            [t.token FOR t IN f.top_tokens[:4]] AS top_tokens, p.label
        FROM {literals.file(file.path)} AS n
        JOIN features AS f ON f.sae = n.neighbor_sae AND f.feature_id = n.neighbor_id {LABELS}
        WHERE n.sae = ? AND n.feature_id >= ? AND n.feature_id < ? AND n.rank <= {_NEIGHBORS}
        ORDER BY n.feature_id, n.rank""",
        [sae.name, first, end],
    ).to_arrow_table()
