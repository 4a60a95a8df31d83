"""Drop an SAE or a corpus: publish a snapshot without it. A vacuum frees the space."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featuredb.errors import DatabaseError, UnknownFeatureError
from featuredb.render.progress import log
from featuredb.store.by_feature import (
    FeatureFileWriter,
    FeatureRows,
    SegmentByFeature,
    directory_of,
)
from featuredb.store.corpora import Texts
from featuredb.store.files.atomic import folder_in_place, remove_tree
from featuredb.store.files.memory import Budget
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Corpus, FeatureFile, Sae, Segment, Snapshot
from ingest.change import changing, next_draft
from ingest.compaction import link_token_files
from ingest.publish import publish

_ROWS_AT_ONCE = 1 << 20


def drop_sae(path: str | Path, sae: str, *, memory: str = "4GB") -> Snapshot:
    """Publish the database without an SAE.

    Its files stay until a vacuum. Raises `UnknownFeatureError` if there is no such SAE,
    `DatabaseError` if it is the only one, `StorageError`.
    """
    with changing(path, "drop") as (layout, base):
        if sae not in {s.name for s in base.saes}:
            raise UnknownFeatureError(
                f"there is no SAE {sae!r}: this database has {_listed([s.name for s in base.saes])}"
            )
        _not_the_last(layout, len(base.saes), f"SAE {sae}")
        draft = msgspec.structs.replace(
            next_draft(base, "drop"),
            saes=tuple(s for s in base.saes if s.name != sae),
            vectors=tuple(v for v in base.vectors if v.sae != sae),
        )
        segments = {s.name: base.segments_of(s.name) for s in draft.saes}
        return publish(
            layout, draft, segments, {}, base.ingests,
            base=base, changed=(), memory=Budget.parse(memory),
        )  # fmt: skip


def drop_corpus(path: str | Path, corpus: str, *, memory: str = "4GB") -> Snapshot:
    """Publish the database without a corpus, given by its name or id, and its activations.

    Ids of other documents and contexts do not change, and those of the corpus are not reused.
    Statistics, examples and co-activation are computed from the rest. Raises `DatabaseError` if
    there is no such corpus or it is the only one, `StorageError`.
    """
    with changing(path, "drop") as (layout, base):
        dropped = next((c for c in base.corpora if corpus in (c.called, c.id)), None)
        if dropped is None:
            names = _listed([c.called for c in base.corpora])
            raise DatabaseError(f"there is no corpus {corpus!r}: this database has {names}")
        _not_the_last(layout, len(base.corpora), f"corpus {corpus}")
        draft = msgspec.structs.replace(
            next_draft(base, "drop"),
            corpora=tuple(c for c in base.corpora if c != dropped),
            saes=tuple(_without_check(sae, dropped.id) for sae in base.saes),
        )
        log.info(f"taking corpus {corpus} out of the segments")
        segments = {
            sae.name: [
                rest
                for place, segment in enumerate(base.segments_of(sae.name))
                if (rest := _without(layout, base, segment, dropped, f"{number}-{place}"))
                is not None
            ]
            for number, sae in enumerate(base.saes)
        }
        return publish(
            layout, draft, segments, {}, base.ingests,
            base=base, memory=Budget.parse(memory),
        )  # fmt: skip


def _without_check(sae: Sae, corpus: str) -> Sae:
    checks = tuple(check for check in sae.checks if check.corpus != corpus)
    return msgspec.structs.replace(sae, checks=checks)


def _not_the_last(layout: Layout, count: int, what: str) -> None:
    if count == 1:
        raise DatabaseError(
            f"{what} is the only one in {layout.root}: to be rid of it, delete the folder"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _without(
    layout: Layout, base: Snapshot, segment: Segment, corpus: Corpus, place: str
) -> Segment | None:
    """A segment without a corpus's contexts: itself, a new one, or None if nothing is left."""
    first, end = corpus.first_context, corpus.first_context + corpus.n_contexts
    if end <= segment.first_context or segment.end_context <= first:
        return segment
    others = (c for c in base.corpora if c.id != corpus.id)
    if not any(
        c.first_context < segment.end_context
        and segment.first_context < c.first_context + c.n_contexts
        for c in others
    ):
        return None
    name = f"d{base.number + 1:06d}-{place}"
    final = layout.segment(name)
    remove_tree(final)
    files = ParquetFiles(layout.root, memory_map=False)
    reader = SegmentByFeature(layout.root, segment, files)
    d_sae = base.sae(segment.sae).d_sae
    counts = np.zeros(d_sae, np.int64)
    with folder_in_place(final) as folder:
        (folder / "fm").mkdir()
        (folder / "tm").mkdir()
        feature_files: list[FeatureFile] = []
        for entry in segment.feature_files:
            path = folder / "fm" / Path(entry.file.path).name
            first_row = int(counts.sum())
            with FeatureFileWriter(path, segment.values, entry.stride) as writer:
                stop = entry.first_row + entry.file.rows
                for at in range(entry.first_row, stop, _ROWS_AT_ONCE):
                    rows = reader.rows(at, min(stop, at + _ROWS_AT_ONCE))
                    context = segment.first_context + (
                        rows.position.astype(np.int64) >> base.position_bits
                    )
                    left = (context < first) | (context >= end)
                    left_rows = FeatureRows(
                        rows.feature_id[left], rows.position[left], rows.activation[left]
                    )
                    counts += np.bincount(left_rows.feature_id, minlength=d_sae)
                    writer.write(left_rows)
            feature_files.append(
                FeatureFile(
                    file_entry(layout, path, folder, final, writer.rows),
                    entry.first_feature,
                    entry.end_feature,
                    first_row,
                    entry.stride,
                )
            )
        files.close()
        np.save(folder / "directory.npy", directory_of(counts))
        sinks = pq.read_table(layout.root / segment.sinks.path)
        dropped = pc.and_(
            pc.greater_equal(sinks.column("context_id"), first),
            pc.less(sinks.column("context_id"), end),
        )
        rest = sinks.filter(pc.invert(dropped))
        pq.write_table(rest, folder / "sinks.parquet", compression="zstd")
        n_dropped = pc.sum(dropped).as_py() or 0
        # By-token files are of one corpus each.
        left_files = [
            f for f in segment.token_files if f.end_context <= first or end <= f.first_context
        ]
        return msgspec.structs.replace(
            segment,
            id=name,
            rows=int(counts.sum()),
            recorded_tokens=segment.recorded_tokens
            - _recorded(layout, base, segment, corpus, n_dropped),
            feature_files=tuple(feature_files),
            token_files=tuple(link_token_files(layout, left_files, folder, final)),
            directory=file_entry(layout, folder / "directory.npy", folder, final, d_sae + 1),
            sinks=file_entry(layout, folder / "sinks.parquet", folder, final, len(rest)),
        )


def _recorded(layout: Layout, base: Snapshot, segment: Segment, corpus: Corpus, sinks: int) -> int:
    """Recorded positions of the corpus in the segment: all but BOS and sinks."""
    starts = Texts(layout.root, base, ParquetFiles(layout.root)).index(corpus)[:, 1]
    low = max(segment.first_context, corpus.first_context) - corpus.first_context
    high = min(segment.end_context - corpus.first_context, corpus.n_contexts)
    tokens = int(starts[high] - starts[low])
    bos = corpus.bos_token_id is not None and not base.recording.keep_bos
    return tokens - (high - low if bos else 0) - sinks
