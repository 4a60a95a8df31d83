"""The logical content of a database, to compare databases with different files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store.by_feature import SegmentByFeature
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.verification import verify


def activations(path: Path, sae: str) -> pa.Table:
    """(feature_id, context_id, token_index, activation) in that order, straight from the files."""
    layout = Layout(path)
    snapshot = read_snapshot(layout)
    files = ParquetFiles(path)
    mask = (1 << snapshot.position_bits) - 1
    tables = []
    for segment in snapshot.segments_of(sae):
        rows = SegmentByFeature(path, segment, files).rows(0, segment.rows)
        position = rows.position.astype("int64")
        tables.append(
            pa.table(
                {
                    "feature_id": rows.feature_id.astype("int64"),
                    "context_id": (position >> snapshot.position_bits) + segment.first_context,
                    "token_index": position & mask,
                    "activation": rows.activation.astype("float32"),
                }
            )
        )
    table = pa.concat_tables(tables)
    return table.sort_by([(name, "ascending") for name in table.column_names[:3]])


def logical_content(path: Path) -> dict[str, pa.Table]:
    """Every table of a database that users can see. Also checks that it is sound."""
    report = verify(path)
    assert report.ok, str(report)
    snapshot = read_snapshot(Layout(path))
    derived = snapshot.derived
    named = {
        "features": derived.features,
        "neighbors": derived.neighbors_decoder,
        "neighbors_encoder": derived.neighbors_encoder,
        "coactivation": derived.coactivation,
    }
    named |= {f"examples {t.sae}": t.examples for t in derived.saes}
    for corpus in snapshot.corpora:
        named |= {f"documents {corpus.id}": corpus.documents}
        named |= {f"contexts {corpus.id}": corpus.contexts}
    content = {name: pq.read_table(path / file.path) for name, file in named.items()}
    for sae in snapshot.saes:
        content[f"activations {sae.name}"] = activations(path, sae.name)
        sinks = [pq.read_table(path / s.sinks.path) for s in snapshot.segments_of(sae.name)]
        content[f"sinks {sae.name}"] = pa.concat_tables(sinks)
    for data in snapshot.user_data:
        content[f"user data {data.table}"] = pq.read_table(path / data.file.path).drop(["created"])
    return content


def assert_same_content(one: Path, other: Path) -> None:
    """Two databases answer every question alike."""
    mine, theirs = logical_content(one), logical_content(other)
    assert mine.keys() == theirs.keys()
    for name, table in mine.items():
        assert table.equals(theirs[name]), name
