"""Running one partition: contexts in, one run per SAE out, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from featuredb.store.feature_order import FeatureOrder, read_feature_order
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.positions import pack
from featuredb.store.snapshot import Corpus, Segment
from ingest.extract.batches import Batch, batches
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import Probe, Recorded, Rule, run_batch
from ingest.extract.overlap import in_order, order_on
from ingest.extract.runs import Codes, Extent, Sinks, write_run
from ingest.model.load import LoadedModel
from ingest.run_plan import Partition, Plan, Summary, refuse_without_plan, run_id, write_summary

Report = Callable[[int, int], None]
"""Told (recorded and skipped tokens, activations) after each batch."""


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
class Engine:
    """What stays the same from partition to partition.

    sources: the corpora that partitions are of. memory: how much the device takes at once, which
    partitions learn from one another. writer: who writes the runs, where several processes do.
    ahead: batches under way at once (`ingest.extract.overlap`).
    """

    layout: Layout
    plan: Plan
    model: LoadedModel
    probes: Sequence[Probe]
    sources: Sequence[Source]
    memory: DeviceMemory
    writer: str = ""
    ahead: int = 0

    def source(self, partition: Partition) -> Source:
        """The corpus a partition is of; none is of two."""
        for source in self.sources:
            row = partition.first_context - source.corpus.first_context
            if 0 <= row < source.corpus.n_contexts:
                return source
        raise LookupError(partition)

    def fitted(self, batch: Batch, rule: Rule) -> list[tuple[Batch, list[Recorded]]]:
        """The batch, in as many parts as the device's memory asks for, and what each gives."""

        def run(part: Batch) -> list[Recorded]:
            return run_batch(self.model, self.probes, part, rule)

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

    def add(self, got: Recorded, contexts: npt.NDArray[np.int64], bits: int, narrow: bool) -> None:
        position = pack(contexts[got.row], got.token_index, bits)
        self.position.append(position.astype(np.uint32))
        self.feature_id.append(got.feature_id.astype(np.uint16) if narrow else got.feature_id)
        self.activation.append(got.activation)
        self.sinks.append((contexts[got.sink_row], got.sink_index, got.sink_norm))
        self.recorded += got.recorded

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


def collect(engine: Engine, number: int, report: Report) -> Collected:
    """Run the model and the SAEs over partition `number`."""
    started = time.monotonic()
    plan = engine.plan
    partition = plan.partitions[number]
    source = engine.source(partition)
    first = partition.first_context - source.corpus.first_context
    end = partition.end_context - source.corpus.first_context
    pieces = [_Pieces() for _ in engine.probes]
    bits = plan.draft.position_bits
    starts = source.starts[first : end + 1]
    queue = batches(source.tokens, starts, plan.batch_tokens)
    for parts in in_order(partial(engine.fitted, rule=source.rule), queue, engine.ahead):
        for part, recorded in parts:
            activations = 0
            for probe, own, got in zip(engine.probes, pieces, recorded, strict=True):
                own.add(got, part.contexts, bits, probe.sae.d_sae <= 1 << 16)
                activations += len(got.row)
            report(int(part.lengths.sum()), activations)
    return Collected(number, pieces, int(starts[-1] - starts[0]), started)


def _feature_order(engine: Engine, sae: str) -> FeatureOrder:
    """Read anew for each run: it is small, and an engine travels between processes."""
    entry = next(s.order for s in engine.plan.draft.saes if s.name == sae)
    assert entry is not None  # a plan gives one to every SAE it runs
    return read_feature_order(ParquetFiles(engine.layout.root), entry.path)


def write(engine: Engine, collected: Collected) -> Summary:
    """Sort and write the runs of a collected partition, then mark it done.

    Raises `IngestError` where the plan has gone meanwhile.
    """
    plan = engine.plan
    refuse_without_plan(engine.layout, plan.id)
    partition = plan.partitions[collected.number]
    segments: list[Segment] = []
    for index, (probe, own) in enumerate(zip(engine.probes, collected.pieces, strict=True)):
        extent = Extent(partition.first_context, partition.end_context, own.recorded)
        segments.append(
            write_run(
                engine.layout,
                run_id(plan, collected.number, index, engine.writer),
                probe.name,
                probe.sae.d_sae,
                own.codes(),
                own.all_sinks(partition.first_context),
                extent,
                _feature_order(engine, probe.name),
                order_on(engine.model.device),
            )
        )
    summary = Summary(
        collected.number,
        collected.tokens,
        time.monotonic() - collected.started,
        tuple(segments),
        plan.id,
    )
    write_summary(engine.layout, summary)
    return summary
