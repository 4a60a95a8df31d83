"""Run one partition: contexts in, one unmerged segment per SAE out, all or nothing."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.store.corpora import Texts
from featuredb.store.feature_order import FeatureOrder, read_feature_order
from featuredb.store.files.memory import keep_freed_memory
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.positions import pack
from featuredb.store.snapshot import Corpus, Segment
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.extract.batches import Batch, batches
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import Recorded, Rule
from ingest.extract.overlap import batches_ahead
from ingest.extract.pipeline import Keep, Kept, Pipeline, Results
from ingest.extract.runs import Codes, Extent, Sinks, write_run
from ingest.model.load import LoadedModel
from ingest.options import ENCODED_ON
from ingest.run_plan import RunPlan, Summary, refuse_without_plan, run_id, write_summary

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
    several processes. ahead: batches in flight at once (`ingest.extract.overlap`). per_row: what
    `Pipeline` learns.
    """

    layout: Layout
    plan: RunPlan
    model: LoadedModel
    saes: Sequence[AttachedSae]
    sources: Sequence[Source]
    memory: DeviceMemory
    writer: str = ""
    ahead: int = 0
    per_row: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, plan: RunPlan, loaded: ModelWithSaes) -> Extractor:
        """An extractor for the partitions of a plan."""
        keep_freed_memory()
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
            saes=[_encoding(each, plan, loaded.model) for each in loaded.saes],
            sources=sources,
            memory=DeviceMemory(plan.batch_tokens),
            ahead=batches_ahead(loaded.model.device),
        )

    def source(self, number: int) -> Source:
        """The corpus of partition `number`. No partition spans two."""
        partition = self.plan.partitions[number]
        for source in self.sources:
            row = partition.first_context - source.corpus.first_context
            if 0 <= row < source.corpus.n_contexts:
                return source
        raise LookupError(partition)

    def results(
        self, queue: Iterable[Batch], rule: Rule, keep: Keep[Kept]
    ) -> Iterator[Results[Kept]]:
        """The results of each batch, in the order of the batches."""
        pipeline = Pipeline(self.model, self.saes, self.memory, self.per_row, rule)
        return pipeline.results(queue, self.ahead, keep)

    def pack(self, sae: int, batch: Batch, recorded: Recorded) -> _Piece:
        """What a partition keeps of an SAE's activations on a batch."""
        context = batch.contexts[recorded.rows].astype(np.uint32)
        bits = self.plan.draft.position_bits
        position = pack(context, recorded.indices.astype(np.uint32), bits)
        narrow = self.saes[sae].sae.d_sae <= 1 << 16
        sinks = Sinks(
            batch.contexts[recorded.sink_row],
            recorded.sink_index.astype(np.int32),
            recorded.sink_norm,
        )
        return _Piece(
            Codes(
                position[recorded.place],
                recorded.feature_id.astype(np.uint16) if narrow else recorded.feature_id,
                recorded.activation,
            ),
            sinks,
            recorded.recorded,
        )


def _encoding(attached: AttachedSae, plan: RunPlan, model: LoadedModel) -> AttachedSae:
    """An SAE as an ingest runs it. What the plan wants encoded by parts is encoded in float32 where
    there is no NVIDIA GPU, and what it wants screened where there is one: it is more precise."""
    (entry,) = (sae for sae in plan.draft.saes if sae.name == attached.name)
    sae = attached.sae.encoder_only()
    how = entry.encode_dtype
    if ENCODED_ON.get(how) == model.device.type and sae.can_encode_in(how, model.dtype):
        sae = sae.encoded_in(how)
    return replace(attached, sae=sae, sink_norm=plan.sink_norms[attached.name])


class _Piece(NamedTuple):
    """One SAE's activations on a batch. recorded: how many positions."""

    codes: Codes
    sinks: Sinks
    recorded: int


@dataclass
class _Pieces:
    """One SAE's recorded batches, until the partition is complete."""

    codes: list[Codes] = field(default_factory=list)
    sinks: list[Sinks] = field(default_factory=list)
    recorded: int = 0

    def add(self, piece: _Piece) -> None:
        self.codes.append(piece.codes)
        self.sinks.append(piece.sinks)
        self.recorded += piece.recorded

    def all_codes(self) -> Codes:
        """All of them. The pieces are gone then: a partition's may take gigabytes."""
        codes, self.codes = self.codes, []
        return Codes(*map(np.concatenate, zip(*codes, strict=True)))

    def all_sinks(self, first_context: int) -> Sinks:
        context, index, norm = map(np.concatenate, zip(*self.sinks, strict=True))
        order = np.lexsort((index, context))
        return Sinks(context[order] + first_context, index[order], norm[order])


@dataclass
class Collected:
    """A partition's activations in memory, ready to be written."""

    number: int
    pieces: list[_Pieces]
    tokens: int
    started: float


def collect(extractor: Extractor, numbers: Iterable[int], report: Report) -> Iterator[Collected]:
    """Run the model and the SAEs over partitions, in this order.

    Where batches overlap, a partition's first ones run while the last ones of the partition before
    are made ready: a GPU does not become idle between two. numbers: the next is taken when every
    batch of the one before is under way. If there is none then, those batches are waited for.
    """
    for rule, of_rule in itertools.groupby(numbers, lambda n: extractor.source(n).rule):
        begun: deque[int] = deque()
        results = extractor.results(_batches(extractor, of_rule, begun), rule, extractor.pack)
        started = time.monotonic()
        for first in results:
            of_partition = itertools.chain([first], results)
            yield gather(extractor, begun.popleft(), of_partition, started, report)
            started = time.monotonic()


def _batches(extractor: Extractor, numbers: Iterable[int], begun: deque[int]) -> Iterator[Batch]:
    """Those of some partitions. begun: gets the number of each partition before its batches."""
    for number in numbers:
        begun.append(number)
        source, partition = extractor.source(number), extractor.plan.partitions[number]
        first = partition.first_context - source.corpus.first_context
        end = partition.end_context - source.corpus.first_context
        starts = source.starts[first : end + 1]
        yield from batches(source.tokens, starts, extractor.plan.batch_tokens)


def gather(
    extractor: Extractor,
    number: int,
    results: Iterator[Results[_Piece]],
    started: float,
    report: Report,
) -> Collected:
    """Keep the activations of partition `number` in memory. results: begin with its batches."""
    partition = extractor.plan.partitions[number]
    missing = partition.end_context - partition.first_context
    pieces = [_Pieces() for _ in extractor.saes]
    tokens = 0
    while missing:
        for part, found in next(results):
            activations = 0
            for all_of_sae, piece in zip(pieces, found, strict=True):
                all_of_sae.add(piece)
                activations += len(piece.codes.position)
            missing -= len(part.contexts)
            tokens += int(part.lengths.sum())
            report(int(part.lengths.sum()), activations)
    return Collected(number, pieces, tokens, started)


def _feature_order(extractor: Extractor, sae: str) -> FeatureOrder:
    """Read for each segment: it is small, and an extractor is pickled."""
    entry = next(s.order for s in extractor.plan.draft.saes if s.name == sae)
    assert entry is not None  # every SAE that a plan runs has one
    return read_feature_order(ParquetFiles(extractor.layout.root), entry.path)


def write(extractor: Extractor, collected: Collected) -> Summary:
    """Sort and write the segments of a collected partition, then mark it done.

    Raises `IngestError` if the plan is gone.
    """
    saes = range(len(extractor.saes))
    return finish(extractor, collected, [write_segment(extractor, collected, n) for n in saes])


def write_segment(extractor: Extractor, collected: Collected, sae: int) -> Segment:
    """Sort and write the segment of one SAE. Its activations are then gone from memory.

    sae: its number. Raises as `write`.
    """
    plan = extractor.plan
    refuse_without_plan(extractor.layout, plan.id)
    partition = plan.partitions[collected.number]
    attached, piece = extractor.saes[sae], collected.pieces[sae]
    collected.pieces[sae] = _Pieces()
    return write_run(
        extractor.layout,
        run_id(plan, collected.number, sae, extractor.writer),
        attached.name,
        attached.sae.d_sae,
        piece.all_codes(),
        piece.all_sinks(partition.first_context),
        Extent(partition.first_context, partition.end_context, piece.recorded),
        _feature_order(extractor, attached.name),
    )


def finish(extractor: Extractor, collected: Collected, segments: Sequence[Segment]) -> Summary:
    """Mark a partition as done. segments: one per SAE, in the plan's order. Raises as `write`."""
    plan = extractor.plan
    summary = Summary(
        collected.number,
        collected.tokens,
        time.monotonic() - collected.started,
        tuple(segments),
        plan.id,
    )
    write_summary(extractor.layout, summary)
    return summary
