"""From finished runs to a published snapshot: compact, derive, publish, clean up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import featuredb
from featuredb import schemas
from featuredb.catalog import build_catalog
from featuredb.files import remove_tree, sweep
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import (
    Corpus,
    Draft,
    Run,
    Segment,
    Snapshot,
    write_snapshot,
)
from featuredb.texts import Texts
from featuredb.vectors import read_directions
from ingest.compact import Compaction, compact_segments
from ingest.derive.statistics import TokenLookUp
from ingest.derive.tables import SaeStatistics, write_derived

Ids = npt.NDArray[np.int64]


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
) -> Snapshot:
    """Make the runs the live content of the database.

    runs: by SAE name, covering disjoint contexts. logits: rows of LOGITS by SAE name. history:
    the ingests behind this snapshot. note: told what is being done. A reader sees nothing of it
    until ``CURRENT`` is renamed; interrupted anywhere before, calling it again starts over.
    """
    directions = {v.sae: read_directions(layout, v) for v in draft.vectors}
    statistics: list[SaeStatistics] = []
    segments: dict[str, tuple[Segment, ...]] = {}
    look_up = _look_up(layout, draft)
    for number, sae in enumerate(draft.saes):
        own = tuple(runs[sae.name])
        note(f"merging {len(own)} runs of {sae.name}")
        collected = SaeStatistics(sae, sum(s.recorded_tokens for s in own), look_up)
        job = Compaction(
            f"c{draft.number:06d}-{number}", sae.name, sae.d_sae, draft.position_bits, own
        )
        segments[sae.name] = (compact_segments(layout, job, collected.add),)
        statistics.append(collected)
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
    for folder in layout.segments.iterdir():
        if folder.name not in named and not folder.name.startswith("."):
            remove_tree(folder)
    for folder in (layout.root, layout.segments, layout.derived, layout.corpora, layout.matrices):
        sweep(folder)


def _look_up(layout: Layout, draft: Draft) -> TokenLookUp:
    """Documents and tokens of the corpora being published."""
    files = ParquetFiles(layout.root)
    texts = Texts(layout.root, draft, files)
    starts = np.array([c.first_context for c in draft.corpora], np.int64)

    def each(
        context_id: npt.NDArray[np.int64],
        read: Callable[
            [Corpus, npt.NDArray[np.int64], npt.NDArray[np.bool_]], npt.NDArray[np.int64]
        ],
    ) -> npt.NDArray[np.int64]:
        answer = np.empty(len(context_id), np.int64)
        owner = np.searchsorted(starts, context_id, side="right") - 1
        for number, corpus in enumerate(draft.corpora):
            mine = owner == number
            if mine.any():
                answer[mine] = read(corpus, context_id[mine] - corpus.first_context, mine)
        return answer

    def document(context_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return each(context_id, lambda corpus, row, _: texts.index(corpus)[row, 0])

    def token(
        context_id: npt.NDArray[np.int64], token_index: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int64]:
        return each(
            context_id,
            lambda corpus, row, mine: texts.tokens(corpus)[
                texts.index(corpus)[row, 1] + token_index[mine]
            ].astype(np.int64),
        )

    return TokenLookUp(document, token, texts.token_texts)
