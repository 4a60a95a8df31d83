"""From segments to a published snapshot: merge, derive, publish."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import pyarrow as pa

from featuredb.render.progress import log
from featuredb.store import schemas
from featuredb.store.files.memory import Budget, return_freed_memory
from featuredb.store.history import now, write_mark, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import WRITER, Draft, IngestRecord, Segment, Snapshot
from ingest.compaction import Compaction, Merge, compact_segments, merge_here, profile_segments
from ingest.derive.profiles import Profiles
from ingest.derive.tables import Content, write_derived
from queries.catalog_file import built_catalog

MOST_SEGMENTS = 8
"""Segments of one SAE that a reader may have to open, about a millisecond each per lookup. With
one more they are merged into one."""

MEMORY = Budget(1 << 32)

_RESERVE = 5
"""One part in so many is left to the allocators, which keep freed memory."""

POSITIONS = 1 << 32
"""Positions are 32 bits wide within a segment."""


def publish(
    layout: Layout,
    draft: Draft,
    segments: Mapping[str, Sequence[Segment]],
    logits: Mapping[str, pa.Table],
    history: Sequence[IngestRecord],
    merge: Merge = merge_here,
    *,
    base: Snapshot | None = None,
    changed: Collection[str] | None = None,
    most: int = MOST_SEGMENTS,
    memory: Budget = MEMORY,
) -> Snapshot:
    """Make the segments the live content of the database.

    segments: by SAE name, covering disjoint contexts. Unmerged ones are merged, and all if more
    than `most` would be left. logits: rows of LOGITS by name of an SAE that `base` does not have.
    history: the ingests behind this snapshot. merge: who merges the buckets. base: the snapshot
    before. Its derived tables are reused where still valid. changed: the SAEs whose activations
    are not those of `base`. Default: all.

    Readers see nothing of it until ``CURRENT`` is renamed. Interrupted before, the next call starts
    over.
    """
    work = memory.bytes - memory.bytes // _RESERVE
    fresh = {sae.name for sae in draft.saes} if changed is None else set(changed)
    live: dict[str, tuple[Segment, ...]] = {}
    profiles: dict[str, Profiles] = {}
    for number, sae in enumerate(draft.saes):
        sae_segments = sorted(segments[sae.name], key=lambda s: s.first_context)
        groups = groups_to_merge(sae_segments, draft.position_bits, most)
        job = Compaction("", sae.name, sae.d_sae, draft.position_bits, tuple(sae_segments), work)
        merged: list[Segment] = []
        for place, group in enumerate(groups):
            if len(group) == 1 and group[0].level:
                merged.append(group[0])
                continue
            log.info(f"merging {len(group)} run{'' if len(group) == 1 else 's'} of {sae.name}")
            part = job._replace(
                segment_id=f"c{draft.number:06d}-{number}-{place}",
                segments=tuple(group),
                profiled=len(groups) == 1 and sae.name in fresh,
            )
            segment, segment_profiles = compact_segments(layout, draft, part, merge)
            return_freed_memory()
            merged.append(segment)
            if segment_profiles is not None:
                profiles[sae.name] = segment_profiles
        live[sae.name] = tuple(merged)
        if sae.name in fresh and sae.name not in profiles:
            log.info(f"statistics of {sae.name}")
            profiles[sae.name] = profile_segments(
                layout, draft, job._replace(segments=live[sae.name])
            )
            return_freed_memory()
    log.info("statistics, co-activation and neighbors")
    derived = write_derived(layout, Content(draft, live, profiles, logits, base, work))
    snapshot = Snapshot(
        format=schemas.FORMAT_VERSION,
        featuredb=WRITER,
        number=draft.number,
        created=now(),
        operation=draft.operation,
        position_bits=draft.position_bits,
        model=draft.model,
        recording=draft.recording,
        vocabulary=draft.vocabulary,
        corpora=draft.corpora,
        saes=draft.saes,
        segments=tuple(s for sae in draft.saes for s in live[sae.name]),
        vectors=draft.vectors,
        derived=derived,
        ingests=tuple(history),
        next_ids=draft.next_ids,
        mark=write_mark(layout, draft.number),
        user_data=() if base is None else base.user_data,
    )
    log.info("publishing")
    with built_catalog(layout, snapshot) as catalog:
        return write_snapshot(layout, snapshot, catalog)


def groups_to_merge(segments: Sequence[Segment], bits: int, most: int) -> list[Sequence[Segment]]:
    """Groups of consecutive segments to merge. A group of one merged segment stays as it is.

    segments: by first context. A group has no more contexts than positions have room for.
    """
    groups: list[list[Segment]] = []
    for unmerged, group in groupby(segments, key=lambda s: s.level == 0):
        run = list(group)
        groups += _with_room(run, bits) if unmerged else [[segment] for segment in run]
    if len(groups) > most:
        groups = _with_room(segments, bits)
    return list(groups)


def _with_room(segments: Sequence[Segment], bits: int) -> list[list[Segment]]:
    """As few groups as 32-bit positions allow."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if groups and segment.end_context - groups[-1][0].first_context <= POSITIONS >> bits:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups
