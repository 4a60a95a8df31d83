"""Compacting a published database: its runs merged into a new snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featuredb import schemas
from featuredb.files import storage_errors
from featuredb.layout import Layout
from featuredb.lock import write_lock
from featuredb.snapshot import Draft, Snapshot, read_snapshot
from ingest.publish import publish


@dataclass(frozen=True)
class Compacted:
    """How a compaction ended: the live snapshot, and how many segments there were and are."""

    snapshot: Snapshot
    before: int
    after: int


def compact(path: str | Path) -> Compacted:
    """Merge the segments of every SAE into one and publish the result as a new snapshot.

    Answers do not change. A database of one segment per SAE is left as it is. The files of the
    snapshot before stay, for readers that have it open. Raises `DatabaseError`, `StorageError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    read_snapshot(layout)  # nothing is locked or made where there is no database
    with write_lock(layout, "compact"), storage_errors(layout.root):
        snapshot = read_snapshot(layout)
        before = len(snapshot.segments)
        if all(len(snapshot.segments_of(sae.name)) <= 1 for sae in snapshot.saes):
            return Compacted(snapshot, before, before)
        draft = Draft(
            number=snapshot.number + 1,
            position_bits=snapshot.position_bits,
            model=snapshot.model,
            recording=snapshot.recording,
            vocabulary=snapshot.vocabulary,
            corpora=snapshot.corpora,
            saes=snapshot.saes,
            vectors=snapshot.vectors,
        )
        runs = {sae.name: snapshot.segments_of(sae.name) for sae in snapshot.saes}
        lens = _logits(layout, snapshot)
        merged = publish(layout, draft, runs, lens, snapshot.runs, lambda _: None)
        return Compacted(merged, before, len(merged.segments))


def _logits(layout: Layout, snapshot: Snapshot) -> dict[str, pa.Table]:
    """The logit lens of each SAE, which no activation changes, from the live features table."""
    names = ["sae", *schemas.LOGITS.names]
    table = pq.read_table(layout.root / snapshot.derived.features.path, columns=names)
    return {
        sae.name: table.filter(pc.equal(table.column("sae"), sae.name)).drop_columns("sae")
        for sae in snapshot.saes
    }
