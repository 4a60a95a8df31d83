"""Make a database of activations that another program recorded: no model and no SAE is run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import IngestError, OptionError
from featuredb.render.progress import log, shown
from featuredb.store import schemas
from featuredb.store.corpora import Texts
from featuredb.store.feature_order import read_feature_order
from featuredb.store.files.atomic import folder_in_place, remove_tree, sweep, write_atomically
from featuredb.store.files.memory import Budget
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry, now
from featuredb.store.layout import Layout
from featuredb.store.outcomes import Outcome
from featuredb.store.positions import pack, position_bits
from featuredb.store.snapshot import Draft, File, LoadCheck, Model, NextIds, Recording, Sae
from featuredb.store.values import Values, stored_values
from ingest.change import tidy, writing
from ingest.compaction import merge_here
from ingest.extract.feature_orders import with_feature_orders
from ingest.extract.partition import Report
from ingest.extract.runs import Codes, Extent, Sinks, write_run
from ingest.operations.ingest import carry_out, done_already, published, unfinished_plan
from ingest.prepare import logits_path
from ingest.run_plan import (
    RunPlan,
    Summary,
    cut_partitions,
    new_plan_id,
    partition_tokens,
    run_id,
    write_plan,
    write_summary,
)
from ingest.sae.naming import check_sae_name
from ingest.tokens.bos import Bos
from ingest.tokens.contexts import TokenizedBatch
from ingest.tokens.store import MAX_CONTEXT_SIZE, CorpusHeader, store_corpus

MOST_FEATURES = 1 << 24
"""As many as the largest published SAE has. What is counted for each takes some hundred
bytes of memory, whether it fires or not."""

MOST_TOKENS = 1 << 22
"""Sixteen times the largest vocabularies. The texts of as many take up to 1 GB."""

_NO_SINKS = Sinks(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))


@dataclass(frozen=True)
class SourceFacts:
    """What is known of activations before they are read.

    format: such as ``goodfire``. source: where they lie. fingerprint: SHA-256 over the content.
    name: of the SAE. model: the language model's name, empty if unknown. context_size: the longest
    sequence. n_tokens, n_activations: how many there are. metadata: columns of `Sequences`.
    """

    format: str
    source: str
    fingerprint: str
    name: str
    hook: str
    model: str
    d_sae: int
    context_size: int
    n_tokens: int
    n_activations: int
    metadata: pa.Schema


class Sequences(NamedTuple):
    """Some sequences of tokens, each a document of one context.

    token_ids: uint32 [t], one after another. lengths: int32 [n]. metadata: n rows.
    """

    token_ids: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int32]
    metadata: pa.RecordBatch


class ImportedActivations(NamedTuple):
    """Activations in any order, all [n]. sequence: its number in the source, from 0."""

    sequence: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]

    def at(self, chosen: npt.NDArray[Any] | slice) -> ImportedActivations:
        """Some of them."""
        sequence, token, feature, activation = self
        return ImportedActivations(
            sequence[chosen], token[chosen], feature[chosen], activation[chosen]
        )


class ActivationSource(Protocol):
    """Activations of one SAE as another program wrote them. Errors are `IngestError`s.

    Token ids are below `MOST_TOKENS`.
    """

    @property
    def facts(self) -> SourceFacts: ...

    def vocabulary(self) -> Sequence[str]:
        """The text of each token id, empty where it is not known."""

    def sequences(self) -> Iterator[Sequences]:
        """All sequences in order."""

    def activations(self, first: int, end: int) -> ImportedActivations:
        """Those of the sequences `first` to `end`."""


def import_activations(
    path: Path, source: ActivationSource, values: Values, memory: Budget, *, progress: bool
) -> Outcome:
    """Create the database at `path`, or continue an interrupted import. See
    `featuredb.import_activations`. Raises `FeatureDBError`."""
    layout = Layout(path.expanduser().resolve())
    if values not in get_args(Values):
        known = ", ".join(get_args(Values))
        raise OptionError(f"values must be one of {known}, not {values!r}")
    facts = source.facts
    _check(facts)
    identity = {
        "operation": "import",
        "model": facts.model,
        "format": facts.format,
        "content": facts.fingerprint,
        f"SAE {facts.name}": f"{facts.fingerprint} {facts.d_sae} {facts.hook}",
        "values": values,
    }
    with shown(progress), writing(layout, "import"):
        there = published(layout)
        if there is not None:
            if done_already(there, identity):
                tidy(layout, there)
                return Outcome(there, fresh=False)
            raise IngestError(
                f"{layout.root} already holds a database of something else, or made with other "
                "options: give another path"
            )
        plan = unfinished_plan(layout, identity)
        if plan is None:
            sweep(layout.root)
            plan = _planned(layout, source, values, memory, identity)
        engine = _Importer(layout, plan, source, values)
        try:
            return Outcome(carry_out(layout, plan, nullcontext(engine), memory, None), fresh=True)
        except IngestError:
            # Of an inconsistent source: running it again would find the same.
            remove_tree(layout.staging)
            raise


def _check(facts: SourceFacts) -> None:
    """Raise `IngestError` for what a database cannot hold."""
    check_sae_name(facts.name)
    for what, text in (("hook", facts.hook), ("language model", facts.model)):
        if not text.isprintable():
            raise IngestError(f"{facts.source} has a {what} that cannot be shown: {text!r}")
    if facts.d_sae > MOST_FEATURES:
        raise beyond(facts.source, "feature", facts.d_sae - 1, MOST_FEATURES)
    if facts.context_size > MAX_CONTEXT_SIZE:
        raise IngestError(
            f"{facts.source} has a sequence of {facts.context_size:,} tokens, more than "
            f"{MAX_CONTEXT_SIZE:,}: cut it before"
        )


def beyond(source: object, what: str, number: int, most: int) -> IngestError:
    """The error for the id of a feature or of a token that is too large, or negative."""
    return IngestError(f"{source} has {what} {number:,}: the ids must be from 0 to {most - 1:,}")


def _planned(
    layout: Layout,
    source: ActivationSource,
    values: Values,
    memory: Budget,
    identity: dict[str, str],
) -> RunPlan:
    facts = source.facts
    remove_tree(layout.staging)
    layout.staging.mkdir(parents=True)
    log.info(f"reading the tokens of {facts.source}")
    texts = source.vocabulary()
    header = CorpusHeader(
        id="0",
        source=facts.source,
        fingerprint=facts.fingerprint,
        context_size=facts.context_size,
        stride=None,
        bos=Bos(None, None),
        metadata=facts.metadata,
        first_document=0,
        first_context=0,
        vocab_size=len(texts),
        name=facts.name,
    )
    corpus = store_corpus(
        layout, header, (_as_contexts(s, texts, facts) for s in source.sequences())
    )
    check = LoadCheck(0, facts.n_activations / max(1, facts.n_tokens), None, 0.0, 0.0, None)
    sae = Sae(
        name=facts.name,
        source=facts.source,
        format=facts.format,
        architecture="unknown",
        sha256=facts.fingerprint,
        hook=facts.hook,
        hook_out=None,
        d_in=0,
        d_out=0,
        d_sae=facts.d_sae,
        encode_dtype="unknown",
        check=check,
    )
    draft = Draft(
        number=1,
        operation="import",
        next_ids=NextIds(),
        position_bits=position_bits(facts.context_size),
        model=Model(
            facts.model or "unknown", "", None, "", "", "unknown", "unknown", 0, 0, len(texts)
        ),
        recording=Recording(True, True, values),
        vocabulary=_store_vocabulary(layout, texts),
        corpora=(corpus,),
        saes=(sae,),
        vectors=(),
    )
    starts = Texts(layout.root, draft, ParquetFiles(layout.root)).index(corpus)[:, 1]
    size = partition_tokens(int(starts[-1]), check.l0, memory)
    partitions = cut_partitions(starts, 0, size)
    first = source.activations(0, partitions[0].end_context).feature_id
    inside = first[(first >= 0) & (first < facts.d_sae)]
    counts = {sae.name: np.bincount(inside, minlength=facts.d_sae)}
    plan = RunPlan(
        id=new_plan_id(),
        identity=identity,
        started=now(),
        batch_tokens=0,
        sink_norms={sae.name: None},
        draft=with_feature_orders(layout, draft, counts),
        corpora=(corpus.id,),
        saes=(sae.name,),
        partitions=partitions,
    )
    empty = pa.array([[]] * facts.d_sae, pa.list_(schemas.TOKEN_LOGIT))
    lens = pa.table([pa.array(range(facts.d_sae), pa.int64()), empty, empty], schema=schemas.LOGITS)
    sink = pa.BufferOutputStream()
    pq.write_table(lens, sink, compression="zstd")
    write_atomically(logits_path(layout, sae.name), sink.getvalue().to_pybytes())
    write_plan(layout, plan)
    return plan


def _as_contexts(
    sequences: Sequences, texts: Sequence[str], facts: SourceFacts
) -> tuple[pa.RecordBatch, TokenizedBatch]:
    n, ends = len(sequences.lengths), np.cumsum(sequences.lengths)
    words = [texts[i] for i in sequences.token_ids.tolist()]
    lengths = sequences.lengths.tolist()
    whole = ["".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    unknown = np.full(n, -1, np.int64)
    columns = {
        "text": pa.array(whole, pa.string()),
        "source": pa.array([facts.source] * n, pa.string()),
        "source_offset": pa.array(range(n), pa.int64()),
        **{name: sequences.metadata.column(name) for name in sequences.metadata.schema.names},
    }
    return pa.RecordBatch.from_pydict(columns), TokenizedBatch(
        token_ids=sequences.token_ids,
        context_lengths=sequences.lengths,
        context_document=np.arange(n),
        context_index=np.zeros(n, np.int32),
        char_start=unknown,
        char_end=unknown,
        n_tokens=sequences.lengths.astype(np.int64),
    )


def _store_vocabulary(layout: Layout, texts: Sequence[str]) -> File:
    final = layout.corpora / "vocabulary"
    remove_tree(final)
    with folder_in_place(final) as folder:
        words = pa.table(
            [
                pa.array(range(len(texts)), pa.uint32()),
                pa.array([text.encode() for text in texts], pa.binary()),
                pa.array(texts, pa.string()),
                pa.array([False] * len(texts)),
            ],
            schema=schemas.VOCABULARY,
        )
        pq.write_table(words, folder / "vocabulary.parquet", compression="zstd")
        return file_entry(layout, folder / "vocabulary.parquet", folder, final, len(texts))


@dataclass(frozen=True)
class _Importer:
    """An `Engine` that reads what others extract."""

    layout: Layout
    plan: RunPlan
    source: ActivationSource
    values: Values
    device = "none"
    merge = staticmethod(merge_here)

    def run(self, partitions: Sequence[int], report: Report) -> Iterator[Summary]:
        (sae,) = self.plan.draft.saes
        assert sae.order is not None
        files = ParquetFiles(self.layout.root)
        order = read_feature_order(files, sae.order.path)
        starts = Texts(self.layout.root, self.plan.draft, files).index(self.plan.draft.corpora[0])
        for number in partitions:
            began = time.monotonic()
            first, end = (
                self.plan.partitions[number].first_context,
                self.plan.partitions[number].end_context,
            )
            lengths = np.diff(starts[first : end + 1, 1])
            codes = self._codes(first, end, lengths, sae)
            tokens = int(lengths.sum())
            name = run_id(self.plan, number, 0)
            extent = Extent(first, end, tokens)
            segment = write_run(
                self.layout, name, sae.name, sae.d_sae, codes, _NO_SINKS, extent, order
            )
            summary = Summary(number, tokens, time.monotonic() - began, (segment,), self.plan.id)
            write_summary(self.layout, summary)
            report(tokens, len(codes.position))
            yield summary

    def _codes(self, first: int, end: int, lengths: npt.NDArray[np.int64], sae: Sae) -> Codes:
        """Sorted activations of some sequences, checked. Raises `IngestError`."""
        rows = self.source.activations(first, end)
        active = rows.activation != 0
        row, token, feature, value = (column[active] for column in rows)
        row = row - first
        wrong = [
            (~np.isfinite(value), "an activation that is no finite number"),
            (
                (feature < 0) | (feature >= sae.d_sae),
                f"a feature beyond the {sae.d_sae:,} there are",
            ),
            ((row < 0) | (row >= end - first), "an activation of another sequence"),
        ]
        wrong.append(
            ((token < 0) | (token >= lengths[row.clip(0, end - first - 1)]), "no such token")
        )
        order = np.lexsort((feature, token, row))
        row, token, feature, value = (column[order] for column in (row, token, feature, value))
        twice = np.zeros(len(row), bool)
        twice[1:] = (np.diff(row) == 0) & (np.diff(token) == 0) & (np.diff(feature) == 0)
        for bad, what in [(b[order], w) for b, w in wrong] + [(twice, "an activation twice")]:
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                raise IngestError(
                    f"{self.source.facts.source} has {what}: feature {feature[at]} at token "
                    f"{token[at]} of sequence number {row[at] + first}"
                )
        position = pack(row, token, self.plan.draft.position_bits).astype(np.uint32)
        narrow = np.uint16 if sae.d_sae <= 1 << 16 else np.uint32
        return Codes(position, feature.astype(narrow), stored_values(value, self.values))
