"""Compact a database: merge its segments into a new snapshot."""

from __future__ import annotations

from pathlib import Path

from featuredb.store.files.memory import Budget
from featuredb.store.outcomes import Compacted
from ingest.change import changing, next_draft
from ingest.publish import groups_to_merge, publish


def compact(path: str | Path, *, memory: str = "4GB") -> Compacted:
    """Merge the segments of every SAE into one and publish the result as a new snapshot.

    Answers do not change. A database with one segment per SAE, or as few as 32-bit positions allow,
    is left as it is. Files of the snapshot before stay until a vacuum. memory: to work in. Raises
    `DatabaseError`, `StorageError`.
    """
    with changing(path, "compact") as (layout, snapshot):
        before = len(snapshot.segments)
        groups = [
            group
            for sae in snapshot.saes
            for group in groups_to_merge(
                snapshot.segments_of(sae.name), snapshot.position_bits, most=1
            )
        ]
        if all(len(group) == 1 and group[0].level for group in groups):
            return Compacted(snapshot, before, before)
        merged = publish(
            layout,
            next_draft(snapshot, "compact"),
            {sae.name: snapshot.segments_of(sae.name) for sae in snapshot.saes},
            {},
            snapshot.ingests,
            base=snapshot,
            changed=(),
            most=1,
            memory=Budget.parse(memory),
        )
        return Compacted(merged, before, len(merged.segments))
