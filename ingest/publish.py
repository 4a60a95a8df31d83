"""From finished runs to a published snapshot: compact, derive, publish, clean up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

import featuredb
from featuredb import schemas
from featuredb.catalog import build_catalog
from featuredb.files import remove_tree, sweep
from featuredb.layout import Layout
from featuredb.snapshot import Draft, Run, Segment, Snapshot, read_snapshot, write_snapshot
from featuredb.vectors import read_directions
from ingest.compact import Compaction, DraftMerge, compact_segments, merge_here
from ingest.derive.tables import SaeStatistics, write_derived


def now() -> str:
    """The time, UTC, as snapshots write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def publish(
    layout: Layout,
    draft: Draft,
    runs: Mapping[str, Sequence[Segment]],
    logits: Mapping[str, pa.Table],
    history: Sequence[Run],
    note: Callable[[str], None],
    merge: DraftMerge = merge_here,
) -> Snapshot:
    """Make the runs the live content of the database.

    runs: by SAE name, covering disjoint contexts. logits: rows of LOGITS by SAE name. history:
    the ingests behind this snapshot. note: told what is being done. merge: who merges the
    buckets. A reader sees nothing of it until ``CURRENT`` is renamed; interrupted anywhere before,
    calling it again starts over.
    """
    directions = {v.sae: read_directions(layout, v) for v in draft.vectors}
    statistics: list[SaeStatistics] = []
    segments: dict[str, tuple[Segment, ...]] = {}
    for number, sae in enumerate(draft.saes):
        own = tuple(runs[sae.name])
        note(f"merging {len(own)} runs of {sae.name}")
        job = Compaction(
            f"c{draft.number:06d}-{number}", sae.name, sae.d_sae, draft.position_bits, own
        )
        segment, buckets = compact_segments(layout, job, partial(merge, layout, draft))
        segments[sae.name] = (segment,)
        statistics.append(SaeStatistics(sae, buckets))
    note("statistics, co-activation and neighbours")
    derived = write_derived(
        layout, draft.number, statistics, segments, directions, logits, draft.position_bits
    )
    snapshot = Snapshot(
        format=schemas.FORMAT_VERSION,
        featuredb=featuredb.__version__,
        number=draft.number,
        created=now(),
        position_bits=draft.position_bits,
        model=draft.model,
        recording=draft.recording,
        vocabulary=draft.vocabulary,
        corpora=draft.corpora,
        saes=draft.saes,
        segments=tuple(s for sae in draft.saes for s in segments[sae.name]),
        vectors=draft.vectors,
        derived=derived,
        runs=tuple(history),
    )
    note("publishing")
    # The catalog first: a crash between the two leaves CURRENT as it was and the same call makes
    # both again, whereas the other order could leave a published snapshot with an old catalog.
    build_catalog(layout, snapshot)
    write_snapshot(layout, snapshot)
    return snapshot


def clean_up(layout: Layout, snapshot: Snapshot) -> None:
    """Remove the staging folder and every segment that no snapshot ever named."""
    remove_tree(layout.staging)
    named = {s.id for s in snapshot.segments}
    for path in layout.snapshots.glob("[0-9]*.json"):
        named |= {s.id for s in read_snapshot(layout, int(path.stem)).segments}
    for folder in layout.segments.iterdir():
        if folder.name not in named and not folder.name.startswith("."):
            remove_tree(folder)
    for folder in (layout.root, layout.segments, layout.derived, layout.corpora, layout.matrices):
        sweep(folder)
