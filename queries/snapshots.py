"""The snapshots that a database keeps."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from featuredb.store.history import kept_snapshots, read_snapshot
from featuredb.store.layout import Layout
from queries.answers import Rows

_SCHEMA = pa.schema(
    [
        ("snapshot", pa.int64()),
        ("created", pa.string()),
        ("operation", pa.string()),
        ("live", pa.bool_()),
        ("corpora", pa.list_(pa.string())),
        ("saes", pa.list_(pa.string())),
        ("activations", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


def list_snapshots(path: Path) -> Rows:
    """One row per snapshot, oldest first. See `featuredb.snapshots`."""
    layout = Layout(path.expanduser().absolute())
    live = read_snapshot(layout).number
    rows = []
    for snapshot in kept_snapshots(layout):
        rows.append(
            {
                "snapshot": snapshot.number,
                "created": snapshot.created,
                "operation": snapshot.operation,
                "live": snapshot.number == live,
                "corpora": [corpus.called for corpus in snapshot.corpora],
                "saes": [sae.name for sae in snapshot.saes],
                "activations": sum(segment.rows for segment in snapshot.segments),
                "bytes": sum(file.bytes for file in snapshot.files()),
            }
        )
    return Rows(pa.Table.from_pylist(rows, schema=_SCHEMA))
