"""Everything before the first partition: the corpus stored, the load checked, the plan written."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store.corpora import Texts
from featuredb.store.files.atomic import folder_in_place, remove_tree, write_atomically
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.positions import position_bits
from featuredb.store.snapshot import Corpus, Draft, File, LoadCheck, NextIds, Sae, Snapshot, Vectors
from featuredb.store.vectors.directions import Directions, fresh_table, table_of, write_vectors
from ingest.change import next_draft
from ingest.derive.logits import logit_lens
from ingest.extract.device import DeviceMemory
from ingest.extract.feature_orders import with_feature_orders
from ingest.extract.forward import Probe, Rule
from ingest.extract.overlap import batches_ahead
from ingest.extract.partition import Engine, Source
from ingest.inputs import Inputs, Reader
from ingest.load_check.alternatives import Reading
from ingest.load_check.check import Measured, judge, measure
from ingest.load_check.sample import SampleTokens
from ingest.model.load import LoadedModel, unembedding
from ingest.options import IngestOptions
from ingest.progress import say
from ingest.publish import now
from ingest.run_plan import Plan, cut_partitions, new_plan_id, partition_tokens, write_plan
from ingest.tokens.contexts import TokenizedBatch
from ingest.tokens.store import CorpusHeader, store_corpus
from ingest.tokens.tokenize import iter_contexts
from ingest.tokens.vocabulary import vocabulary

_TOKENISING_AHEAD = 1
"""One thread: the tokenizer spreads a batch over all cores itself."""

_CPU_BATCH_TOKENS = 4_096
_GPU_BATCH_TOKENS = 32_768


def make_plan(
    layout: Layout, inputs: Inputs, options: IngestOptions, identity: Mapping[str, str]
) -> Plan:
    """The plan of a new database: its corpus and its directions are stored, its load checked.

    Raises `LoadCheckError`, `CorpusError`; what is on the disk by then is replaced by a later
    call.
    """
    start_over(layout)
    corpus = _store_corpus(layout, inputs, options, identity["corpus content"], NextIds())
    draft = Draft(
        number=1,
        position_bits=position_bits(inputs.context_size),
        model=inputs.model_record(),
        recording=options.recording(),
        vocabulary=_store_vocabulary(layout, inputs.model),
        corpora=(corpus,),
        saes=(),
        vectors=(),
    )
    return _plan_saes(layout, draft, inputs.reader, options, identity)


def plan_append(
    layout: Layout,
    base: Snapshot,
    inputs: Inputs,
    options: IngestOptions,
    identity: Mapping[str, str],
) -> Plan:
    """The plan of one more corpus for the SAEs of `base`; raises as `make_plan`.

    Sinks are what they were at the first ingest: the same position is one in every corpus.
    """
    start_over(layout)
    corpus = _store_corpus(layout, inputs, options, identity["corpus content"], base.unused_ids())
    draft = msgspec.structs.replace(next_draft(base, "append"), corpora=(*base.corpora, corpus))
    budget = _batch_tokens(inputs.reader, options)
    sample = _sample_tokens(layout, draft, corpus)
    measured = check_load(inputs.reader, options, sample, budget)
    draft = with_feature_orders(layout, draft, _counts(inputs.reader, measured))
    return _write(layout, draft, [corpus], base.saes, options, identity, budget)


def plan_saes(
    layout: Layout,
    base: Snapshot,
    reader: Reader,
    options: IngestOptions,
    identity: Mapping[str, str],
) -> Plan:
    """The plan of more SAEs over the corpora of `base`; raises as `make_plan`."""
    start_over(layout)
    return _plan_saes(layout, next_draft(base, "add-sae"), reader, options, identity)


def start_over(layout: Layout) -> None:
    """An empty staging folder."""
    remove_tree(layout.staging)
    layout.staging.mkdir(parents=True)


def _plan_saes(
    layout: Layout,
    draft: Draft,
    reader: Reader,
    options: IngestOptions,
    identity: Mapping[str, str],
) -> Plan:
    """The plan of the reader's SAEs over all corpora of the draft, which has not got them yet."""
    show = options.progress
    budget = _batch_tokens(reader, options)
    say("checking the load on the first tokens", show=show)
    sample = _sample_tokens(layout, draft, draft.corpora[0])
    measured = check_load(reader, options, sample, budget)
    say("storing the directions and their logit lens", show=show)
    saes = tuple(p.record(m.check) for p, m in zip(reader.saes, measured, strict=True))
    draft = msgspec.structs.replace(
        draft,
        saes=(*draft.saes, *saes),
        vectors=(*draft.vectors, *_store_directions(layout, draft, reader)),
    )
    draft = with_feature_orders(layout, draft, _counts(reader, measured))
    return _write(layout, draft, draft.corpora, saes, options, identity, budget)


def _write(
    layout: Layout,
    draft: Draft,
    corpora: Sequence[Corpus],
    saes: Sequence[Sae],
    options: IngestOptions,
    identity: Mapping[str, str],
    budget: int,
) -> Plan:
    """Cut the corpora into partitions and write the plan down."""
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    starts = {corpus.id: texts.index(corpus)[:, 1] for corpus in corpora}
    total = sum(int(own[-1]) for own in starts.values())
    size = partition_tokens(total, sum(sae.check.l0 for sae in saes), options.memory_bytes())
    plan = Plan(
        id=new_plan_id(),
        identity=dict(identity),
        started=now(),
        batch_tokens=budget,
        sink_norms={sae.name: _sink_norm(sae.check) for sae in saes},
        draft=draft,
        corpora=tuple(corpus.id for corpus in corpora),
        saes=tuple(sae.name for sae in saes),
        partitions=tuple(
            partition
            for corpus in corpora
            for partition in cut_partitions(starts[corpus.id], corpus.first_context, size)
        ),
    )
    write_plan(layout, plan)
    return plan


def engine_of(layout: Layout, plan: Plan, inputs: Inputs | Reader, *, show: bool = False) -> Engine:
    """What running the plan's partitions needs. show: say when the device runs out of memory."""
    texts = Texts(layout.root, plan.draft, ParquetFiles(layout.root))
    return Engine(
        layout=layout,
        plan=plan,
        model=inputs.model,
        probes=[Probe(p.name, p.sae, p.hook, plan.sink_norms[p.name]) for p in inputs.saes],
        sources=[
            Source(
                corpus,
                texts.tokens(corpus),
                texts.index(corpus)[:, 1],
                rule_of(plan.draft, corpus),
            )
            for corpus in plan.draft.corpora
            if corpus.id in plan.corpora
        ],
        memory=device_memory(plan.batch_tokens, show=show),
        ahead=batches_ahead(inputs.model.device),
    )


def rule_of(draft: Draft | Snapshot, corpus: Corpus) -> Rule:
    """Which positions of a corpus are recorded, and how."""
    has_bos = corpus.bos_token_id is not None
    return Rule(has_bos and not draft.recording.keep_bos, draft.recording.values)


def _batch_tokens(reader: Reader, options: IngestOptions) -> int:
    on_cpu = reader.model.device.type == "cpu"
    return options.batch_tokens or (_CPU_BATCH_TOKENS if on_cpu else _GPU_BATCH_TOKENS)


def logits_path(layout: Layout, sae: str) -> Path:
    """Where an SAE's logit lens waits for the snapshot."""
    return layout.staging / f"logits.{table_of(sae)}.parquet"


def _store_corpus(
    layout: Layout, inputs: Inputs, options: IngestOptions, fingerprint: str, ids: NextIds
) -> Corpus:
    say(f"tokenising {inputs.corpus.source}", show=options.progress)
    header = CorpusHeader(
        id=str(ids.corpus),
        source=inputs.corpus.source,
        fingerprint=fingerprint,
        context_size=inputs.context_size,
        stride=options.stride,
        bos_token_id=inputs.bos,
        metadata=inputs.corpus.metadata_schema,
        first_document=ids.document,
        first_context=ids.context,
        vocab_size=inputs.model.vocab_size,
        chats=options.messages_column is not None,
    )
    return store_corpus(layout, header, contexts_of(inputs, options), options.max_tokens)


def contexts_of(
    inputs: Inputs, options: IngestOptions
) -> Iterator[tuple[pa.RecordBatch, TokenizedBatch]]:
    """The corpus, a batch of documents with its contexts at a time."""
    return iter_contexts(
        inputs.corpus,
        inputs.model.tokenizer,
        context_size=inputs.context_size,
        bos_id=inputs.bos,
        stride=options.stride,
        vocab_size=inputs.model.vocab_size,
        # Where it stops early, what was tokenised ahead would be for nothing.
        workers=_TOKENISING_AHEAD if options.max_tokens is None else 0,
    )


def _store_vocabulary(layout: Layout, model: LoadedModel) -> File:
    final = layout.corpora / "vocabulary"
    remove_tree(final)
    with folder_in_place(final) as folder:
        words = vocabulary(model.tokenizer, model.vocab_size)
        path = folder / "vocabulary.parquet"
        pq.write_table(words, path, compression="zstd")
        return file_entry(layout, path, folder, final, words.num_rows)


def _store_directions(layout: Layout, draft: Draft, reader: Reader) -> tuple[Vectors, ...]:
    lens = unembedding(reader.model)
    token_texts = Texts(layout.root, draft, ParquetFiles(layout.root)).token_texts
    stored = []
    for placed in reader.saes:
        sae = placed.sae
        directions = Directions(sae.W_dec.cpu().numpy(), sae.W_enc.T.contiguous().cpu().numpy())
        called = fresh_table(placed.name, draft.number)
        stored.append(write_vectors(layout, placed.name, directions, called))
        table = logit_lens(sae.W_dec, lens, token_texts)
        held = io.BytesIO()
        pq.write_table(table, held, compression="zstd")
        write_atomically(logits_path(layout, placed.name), held.getvalue())
    return tuple(stored)


def check_load(
    reader: Reader, options: IngestOptions, sample: SampleTokens, batch_tokens: int
) -> list[Measured]:
    """Measure every SAE, and judge it unless told not to. Raises `LoadCheckError`."""
    threshold = None if options.keep_sinks else options.sink_threshold
    measured = measure(
        reader.model,
        [(p.sae, p.hook, p.hook_out) for p in reader.saes],
        sample,
        threshold,
        device_memory(batch_tokens, show=options.progress),
    )
    note = partial(say, show=options.progress)
    for placed, (check, _) in zip(reader.saes, measured, strict=True):
        explained = check.variance_explained
        note(
            f"{placed.name} at {placed.hook.name}: variance explained "
            f"{'not measured' if explained is None else format(explained, '.3f')}, "
            f"L0 {check.l0:.1f} on {check.tokens:,} tokens"
        )
        if options.check:
            reading = Reading(placed.sae, placed.hook, placed.hook_out, threshold)
            judge(placed.name, reader.model, reading, check, sample, note)
    return measured


def _counts(reader: Reader, measured: Sequence[Measured]) -> dict[str, npt.NDArray[np.int64]]:
    return {p.name: m.counts for p, m in zip(reader.saes, measured, strict=True)}


def device_memory(batch_tokens: int, *, show: bool) -> DeviceMemory:
    """A device that starts with `batch_tokens` and says when it has to make do with less."""
    return DeviceMemory(batch_tokens, partial(say, show=show))


def _sample_tokens(layout: Layout, draft: Draft, corpus: Corpus) -> SampleTokens:
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    starts = texts.index(corpus)[:, 1]
    skip_first = rule_of(draft, corpus).skip_first
    return SampleTokens(texts.tokens(corpus), starts, corpus.bos_token_id, skip_first)


def _sink_norm(check: LoadCheck) -> float | None:
    return check.sink_threshold * check.median_norm if check.sink_threshold else None
