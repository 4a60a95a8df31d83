"""Automatic labels of all features, from stored statistics and top contexts alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.labels.batch import LabelBatch
from featuredb.labels.methods import AUTOMATIC
from featuredb.labels.rules import FeatureFacts, label_of
from featuredb.labels.write import add_labels
from featuredb.store.names import document_columns
from featuredb.store.outcomes import Labeled
from featuredb.store.store import Store
from queries.catalog.literals import name
from queries.connection import Reader
from queries.lens import standing_out

_VALUES = 50
"""Values that a column of documents has at most, to be said of features."""

AUTHOR = "featuredb"


def label_automatically(path: Path) -> Labeled:
    """See `featuredb.make_labels`."""
    store = Store.open(path)
    reader = Reader(store)
    try:
        rows = list(_labels(reader))
    finally:
        reader.close()
    table = pa.table(
        {
            "sae": pa.array([sae for sae, _, _ in rows], pa.string()),
            "feature_id": pa.array([feature for _, feature, _ in rows], pa.int64()),
            "text": pa.array([text for _, _, text in rows], pa.string()),
            "author": pa.array([AUTHOR] * len(rows), pa.string()),
        }
    )
    return add_labels(path, LabelBatch(table, method=AUTOMATIC), replaces=AUTOMATIC)


def _labels(reader: Reader) -> Iterator[tuple[str, int, str]]:
    """SAE, number and label of every feature that fires."""
    snapshot = reader.snapshot
    widths = {sae.name: sae.d_sae for sae in snapshot.saes}
    columns = _described_by(reader)
    beside, values = _contexts(reader), _values(reader, columns)
    for row in reader.cursor().sql(_FEATURES).to_arrow_table().to_pylist():
        key = (row["sae"], row["feature_id"])
        lens = [row["promoted_tokens"], row["suppressed_tokens"]]
        up, down = ([entry["logit"] for entry in entries] for entries in lens)
        ends = standing_out(up, down, snapshot.model.vocab_size, widths[row["sae"]])
        promoted = [e["token"] for e in lens[0] if ends and e["logit"] > ends[0]]
        total = row["count"] * row["mean_activation"]
        tokens = [
            (each["token"], each["count"] * each["mean_activation"] / total)
            for each in row["top_tokens"]
        ]
        about = {c: values[c][key] for c in columns}
        facts = FeatureFacts(tokens, **beside.get(key, {}), values=about, promoted=promoted)
        if tokens:
            yield (*key, label_of(facts))


_FEATURES = """SELECT sae, feature_id, count, mean_activation, top_tokens, promoted_tokens,
    suppressed_tokens
FROM features WHERE count > 0 ORDER BY sae, feature_id"""

_CONTEXTS = """
SELECT sae, feature_id, count(*) AS contexts, count(*) FILTER (token_index <= 2) AS starts,
    list(tokens[peak - 1]) FILTER (peak > 1) AS before,
    list(tokens[peak + 1]) FILTER (peak < len(tokens)) AS after
FROM (SELECT *, 1 + token_index - window_start AS peak FROM windows) GROUP BY sae, feature_id"""


def _contexts(reader: Reader) -> dict[tuple[str, int], dict[str, Any]]:
    rows = reader.cursor().sql(_CONTEXTS).to_arrow_table().to_pylist()
    found = {}
    for row in rows:
        key = (row.pop("sae"), row.pop("feature_id"))
        found[key] = {**row, "before": row["before"] or [], "after": row["after"] or []}
    return found


def _described_by(reader: Reader) -> list[str]:
    """The columns of documents with few values, that are no numbers."""
    chosen = []
    cursor = reader.cursor()
    known = dict(zip(*_schema(cursor), strict=True))
    for column in document_columns(reader.snapshot):
        if column == "source" or str(known[column]) != "VARCHAR":
            continue
        values = f"SELECT count(DISTINCT {name(column)}) FROM documents"
        ((n,),) = cursor.sql(values).fetchall()
        if 2 <= n <= _VALUES:
            chosen.append(column)
    return chosen


def _schema(cursor: Any) -> tuple[Sequence[str], Sequence[Any]]:
    relation = cursor.sql("FROM documents LIMIT 0")
    return relation.columns, relation.types


def _values(
    reader: Reader, columns: Sequence[str]
) -> dict[str, dict[tuple[str, int], dict[str, tuple[int, float]]]]:
    """By column and feature: how many documents of its top contexts have a value, and what share
    all documents have."""
    found: dict[str, dict[tuple[str, int], dict[str, tuple[int, float]]]] = {}
    for column in columns:
        value = name(column)
        shares = f"""SELECT {value}, count(*) / sum(count(*)) OVER () FROM documents
            WHERE {value} IS NOT NULL GROUP BY {value}"""
        base = dict(reader.cursor().sql(shares).fetchall())
        counts = f"""SELECT sae, feature_id, {value} AS value, count(DISTINCT document_id) AS n
            FROM windows JOIN documents USING (document_id) WHERE {value} IS NOT NULL
            GROUP BY sae, feature_id, {value}"""
        of: dict[tuple[str, int], dict[str, tuple[int, float]]] = defaultdict(dict)
        for sae, feature, each, n in reader.cursor().sql(counts).fetchall():
            of[sae, feature][each] = (n, base[each])
        found[column] = of
    return found
