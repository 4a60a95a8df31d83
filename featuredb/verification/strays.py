"""Files in the folder that no snapshot names."""

from __future__ import annotations

from collections.abc import Iterable
from os import walk
from pathlib import Path

from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot


def strays(layout: Layout, kept: Iterable[Snapshot]) -> tuple[int, int]:
    """(files, bytes) that none of the snapshots names. The lock and an ingest's staging folder
    are no content and not counted either."""
    known = {layout.current, layout.lock, layout.catalog}
    tables = []
    for snapshot in kept:
        known |= {layout.root / file.path for file in snapshot.files()}
        # Format 1 does not list LanceDB's files.
        tables += [layout.vectors / f"{v.table}.lance" for v in snapshot.vectors if not v.files]
    aside = [layout.staging, layout.snapshots, *tables]
    files = size = 0
    for folder, _, names in walk(layout.root):
        here = Path(folder)
        if any(here.is_relative_to(other) for other in aside):
            continue
        for path in (here / name for name in names):
            if path not in known:
                files += 1
                size += path.stat().st_size if path.exists() else 0
    return files, size
