"""Run one partition: contexts in, one unmerged segment per SAE out, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from featuredb.store.corpora import Texts
from featuredb.store.feature_order import FeatureOrder, read_feature_order
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.positions import pack
from featuredb.store.snapshot import Corpus, Segment
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.extract.batches import Batch, batches
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import Recorded, Rule, run_batch
from ingest.extract.in_order import in_order
from ingest.extract.overlap import batches_ahead, order_on
from ingest.extract.runs import Codes, Extent, Sinks, write_run
from ingest.model.load import LoadedModel
from ingest.run_plan import Partition, RunPlan, Summary, refuse_without_plan, run_id, write_summary

Report = Callable[[int, int], None]
"""Called with (tokens, activations) after each batch. Tokens that are not recorded count too."""


@dataclass(frozen=True)
class Source:
    """A stored corpus as partitions read it.

    tokens: its token ids. starts: int64 [n + 1], where each context begins. rule: which of its
    positions are recorded.
    """

    corpus: Corpus
    tokens: npt.NDArray[np.unsignedinteger]
    starts: npt.NDArray[np.int64]
    rule: Rule


@dataclass(frozen=True)
class Extractor:
    """What stays the same from partition to partition.

    saes: those of the plan, in its order. sources: the corpora that partitions are of. memory: how
    much the device takes at once, shared by all partitions. writer: distinguishes the segments of
    several processes. ahead: batches in flight at once (`ingest.extract.overlap`).
    """

    layout: Layout
    plan: RunPlan
    model: LoadedModel
    saes: Sequence[AttachedSae]
    sources: Sequence[Source]
    memory: DeviceMemory
    writer: str = ""
    ahead: int = 0

    @classmethod
    def of(cls, layout: Layout, plan: RunPlan, loaded: ModelWithSaes) -> Extractor:
        """An extractor for the partitions of a plan."""
        texts = Texts(layout.root, plan.draft, ParquetFiles(layout.root))
        sources = [
            Source(
                corpus,
                texts.tokens(corpus),
                texts.index(corpus)[:, 1],
                Rule.of(plan.draft, corpus),
            )
            for corpus in plan.draft.corpora
            if corpus.id in plan.corpora
        ]
        return cls(
            layout=layout,
            plan=plan,
            model=loaded.model,
            saes=[replace(each, sink_norm=plan.sink_norms[each.name]) for each in loaded.saes],
            sources=sources,
            memory=DeviceMemory(plan.batch_tokens),
            ahead=batches_ahead(loaded.model.device),
        )

    def source(self, partition: Partition) -> Source:
        """The corpus of a partition. No partition spans two."""
        for source in self.sources:
            row = partition.first_context - source.corpus.first_context
            if 0 <= row < source.corpus.n_contexts:
                return source
        raise LookupError(partition)

    def fitted(self, batch: Batch, rule: Rule) -> list[tuple[Batch, list[Recorded]]]:
        """The batch in as many parts as the device's memory needs, with the result of each."""

        def run(part: Batch) -> list[Recorded]:
            return run_batch(self.model, self.saes, part, rule)

        return list(self.memory.run(run, batch))


@dataclass
class _Pieces:
    """One SAE's recorded batches, until the partition is complete."""

    position: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    feature_id: list[npt.NDArray[np.unsignedinteger]] = field(default_factory=list)
    activation: list[npt.NDArray[np.floating]] = field(default_factory=list)
    sinks: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]] = (
        field(default_factory=list)
    )
    recorded: int = 0

    def add(self, rows: Recorded, contexts: npt.NDArray[np.int64], bits: int, narrow: bool) -> None:
        position = pack(contexts[rows.row], rows.token_index, bits)
        self.position.append(position.astype(np.uint32))
        self.feature_id.append(rows.feature_id.astype(np.uint16) if narrow else rows.feature_id)
        self.activation.append(rows.activation)
        self.sinks.append((contexts[rows.sink_row], rows.sink_index, rows.sink_norm))
        self.recorded += rows.recorded

    def codes(self) -> Codes:
        return Codes(
            np.concatenate(self.position),
            np.concatenate(self.feature_id),
            np.concatenate(self.activation),
        )

    def all_sinks(self, first_context: int) -> Sinks:
        context = np.concatenate([s[0] for s in self.sinks]) + first_context
        index = np.concatenate([s[1] for s in self.sinks])
        norm = np.concatenate([s[2] for s in self.sinks])
        order = np.lexsort((index, context))
        return Sinks(context[order], index[order].astype(np.int32), norm[order])


@dataclass
class Collected:
    """A partition's activations in memory, ready to be written."""

    number: int
    pieces: list[_Pieces]
    tokens: int
    started: float


def collect(extractor: Extractor, number: int, report: Report) -> Collected:
    """Run the model and the SAEs over partition `number`."""
    started = time.monotonic()
    plan = extractor.plan
    partition = plan.partitions[number]
    source = extractor.source(partition)
    first = partition.first_context - source.corpus.first_context
    end = partition.end_context - source.corpus.first_context
    pieces = [_Pieces() for _ in extractor.saes]
    bits = plan.draft.position_bits
    starts = source.starts[first : end + 1]
    queue = batches(source.tokens, starts, plan.batch_tokens)
    for parts in in_order(partial(extractor.fitted, rule=source.rule), queue, extractor.ahead):
        for part, recorded in parts:
            activations = 0
            for attached, piece, rows in zip(extractor.saes, pieces, recorded, strict=True):
                piece.add(rows, part.contexts, bits, attached.sae.d_sae <= 1 << 16)
                activations += len(rows.row)
            report(int(part.lengths.sum()), activations)
    return Collected(number, pieces, int(starts[-1] - starts[0]), started)


def _feature_order(extractor: Extractor, sae: str) -> FeatureOrder:
    """Read for each segment: it is small, and an extractor is pickled."""
    entry = next(s.order for s in extractor.plan.draft.saes if s.name == sae)
    assert entry is not None  # every SAE that a plan runs has one
    return read_feature_order(ParquetFiles(extractor.layout.root), entry.path)


def write(extractor: Extractor, collected: Collected) -> Summary:
    """Sort and write the segments of a collected partition, then mark it done.

    Raises `IngestError` if the plan is gone.
    """
    plan = extractor.plan
    refuse_without_plan(extractor.layout, plan.id)
    partition = plan.partitions[collected.number]
    segments: list[Segment] = []
    for index, (attached, piece) in enumerate(zip(extractor.saes, collected.pieces, strict=True)):
        extent = Extent(partition.first_context, partition.end_context, piece.recorded)
        segments.append(
            write_run(
                extractor.layout,
                run_id(plan, collected.number, index, extractor.writer),
                attached.name,
                attached.sae.d_sae,
                piece.codes(),
                piece.all_sinks(partition.first_context),
                extent,
                _feature_order(extractor, attached.name),
                order_on(extractor.model.device),
            )
        )
    summary = Summary(
        collected.number,
        collected.tokens,
        time.monotonic() - collected.started,
        tuple(segments),
        plan.id,
    )
    write_summary(extractor.layout, summary)
    return summary
