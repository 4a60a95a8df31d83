"""Everything before the first partition: the corpus stored, the load checked, the plan written."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb import schemas
from featuredb.errors import IngestError
from featuredb.files import folder_in_place, remove_tree, write_atomically
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Corpus, Draft, File, LoadCheck, Recording, Vectors
from featuredb.texts import Texts
from featuredb.vectors import Directions, table_of, write_vectors
from ingest.check import judge, measure
from ingest.corpus_store import CorpusHeader, store_corpus
from ingest.derive.logits import logit_lens
from ingest.device_memory import DeviceMemory
from ingest.extract import Probe, Rule
from ingest.inputs import Inputs, Reader
from ingest.model import LoadedModel, unembedding
from ingest.options import IngestOptions
from ingest.overlap import batches_ahead
from ingest.partition import Engine
from ingest.plan import Plan, cut_partitions, partition_tokens, write_plan
from ingest.progress import say
from ingest.publish import now
from ingest.runs import file_entry
from ingest.sample import SampleTokens
from ingest.suspects import Reading
from ingest.tokens import TokenizedBatch, iter_contexts
from ingest.vocabulary import vocabulary

_CORPUS_ID = "0"
MOST_POSITIONS = 1 << 32
"""Positions are 32 bits wide within a segment, and an SAE's activations end as one segment."""

_CPU_BATCH_TOKENS = 4_096
_GPU_BATCH_TOKENS = 32_768


def make_plan(
    layout: Layout, inputs: Inputs, options: IngestOptions, identity: Mapping[str, str]
) -> Plan:
    """Store the corpus and the directions, check the load, and write the plan down.

    Raises `LoadCheckError`, `CorpusError`; what is on the disk by then is replaced by a later
    call.
    """
    show = options.progress
    remove_tree(layout.staging)
    layout.staging.mkdir(parents=True)
    say(f"tokenising {inputs.corpus.source}", show=show)
    corpus = _store_corpus(layout, inputs, options, identity["corpus content"])
    bits = schemas.position_bits(inputs.context_size)
    if corpus.n_contexts > MOST_POSITIONS >> bits:
        raise IngestError(
            f"{corpus.source} makes {corpus.n_contexts:,} contexts; a database of context size "
            f"{inputs.context_size} holds {MOST_POSITIONS >> bits:,}: split it over databases"
        )
    draft = Draft(
        number=1,
        position_bits=bits,
        model=inputs.model_record(),
        recording=Recording(options.keep_bos, options.keep_sinks, options.exact),
        vocabulary=_store_vocabulary(layout, inputs.model),
        corpora=(corpus,),
        saes=(),
        vectors=(),
    )
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    starts = texts.index(corpus)[:, 1]
    on_cpu = inputs.model.device.type == "cpu"
    budget = options.batch_tokens or (_CPU_BATCH_TOKENS if on_cpu else _GPU_BATCH_TOKENS)
    say("checking the load on the first tokens", show=show)
    checks = check_load(inputs, options, _sample_tokens(draft, texts), budget)
    say("storing the directions and their logit lens", show=show)
    draft = msgspec.structs.replace(
        draft,
        saes=tuple(p.record(c) for p, c in zip(inputs.saes, checks, strict=True)),
        vectors=_store_directions(layout, inputs, texts.token_texts),
    )
    size = partition_tokens(int(starts[-1]), sum(c.l0 for c in checks), options.memory_bytes())
    plan = Plan(
        identity=dict(identity),
        started=now(),
        batch_tokens=budget,
        sink_norms={p.name: _sink_norm(c) for p, c in zip(inputs.saes, checks, strict=True)},
        draft=draft,
        partitions=cut_partitions(starts, corpus.first_context, size),
    )
    write_plan(layout, plan)
    return plan


def engine_of(layout: Layout, plan: Plan, inputs: Inputs | Reader, *, show: bool = False) -> Engine:
    """What running the plan's partitions needs. show: say when the device runs out of memory."""
    corpus = plan.draft.corpora[-1]
    texts = Texts(layout.root, plan.draft, ParquetFiles(layout.root))
    return Engine(
        layout=layout,
        plan=plan,
        model=inputs.model,
        probes=[Probe(p.name, p.sae, p.hook, plan.sink_norms[p.name]) for p in inputs.saes],
        rule=rule_of(plan.draft),
        tokens=texts.tokens(corpus),
        starts=texts.index(corpus)[:, 1],
        memory=device_memory(plan.batch_tokens, show=show),
        ahead=batches_ahead(inputs.model.device),
    )


def rule_of(draft: Draft) -> Rule:
    """Which positions are recorded, and how."""
    has_bos = draft.corpora[-1].bos_token_id is not None
    return Rule(has_bos and not draft.recording.keep_bos, draft.recording.exact)


def logits_path(layout: Layout, sae: str) -> Path:
    """Where an SAE's logit lens waits for the snapshot."""
    return layout.staging / f"logits.{table_of(sae)}.parquet"


def _store_corpus(
    layout: Layout, inputs: Inputs, options: IngestOptions, fingerprint: str
) -> Corpus:
    header = CorpusHeader(
        id=_CORPUS_ID,
        source=inputs.corpus.source,
        fingerprint=fingerprint,
        context_size=inputs.context_size,
        stride=options.stride,
        bos_token_id=inputs.bos,
        metadata=inputs.corpus.metadata_schema,
        first_document=0,
        first_context=0,
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
    )


def _store_vocabulary(layout: Layout, model: LoadedModel) -> File:
    final = layout.corpora / "vocabulary"
    remove_tree(final)
    with folder_in_place(final) as folder:
        words = vocabulary(model.tokenizer, model.vocab_size)
        path = folder / "vocabulary.parquet"
        pq.write_table(words, path, compression="zstd")
        return file_entry(layout, path, folder, final, words.num_rows)


def _store_directions(
    layout: Layout, inputs: Inputs, token_texts: list[str]
) -> tuple[Vectors, ...]:
    lens = unembedding(inputs.model)
    stored = []
    for placed in inputs.saes:
        sae = placed.sae
        directions = Directions(sae.W_dec.cpu().numpy(), sae.W_enc.T.contiguous().cpu().numpy())
        stored.append(write_vectors(layout, placed.name, directions))
        table = logit_lens(sae.W_dec, lens, token_texts)
        held = io.BytesIO()
        pq.write_table(table, held, compression="zstd")
        write_atomically(logits_path(layout, placed.name), held.getvalue())
    return tuple(stored)


def check_load(
    inputs: Inputs, options: IngestOptions, sample: SampleTokens, batch_tokens: int
) -> list[LoadCheck]:
    """Measure every SAE, and judge it unless told not to. Raises `LoadCheckError`."""
    threshold = None if options.keep_sinks else options.sink_threshold
    checks = measure(
        inputs.model,
        [(p.sae, p.hook, p.hook_out) for p in inputs.saes],
        sample,
        threshold,
        device_memory(batch_tokens, show=options.progress),
    )
    note = partial(say, show=options.progress)
    for placed, check in zip(inputs.saes, checks, strict=True):
        note(
            f"{placed.name} at {placed.hook.name}: variance explained "
            f"{check.variance_explained:.3f}, L0 {check.l0:.1f} on {check.tokens:,} tokens"
        )
        if options.check:
            reading = Reading(placed.sae, placed.hook, placed.hook_out, threshold)
            judge(placed.name, inputs.model, reading, check, sample, note)
    return checks


def device_memory(batch_tokens: int, *, show: bool) -> DeviceMemory:
    """A device that starts with `batch_tokens` and says when it has to make do with less."""
    return DeviceMemory(batch_tokens, partial(say, show=show))


def _sample_tokens(draft: Draft, texts: Texts) -> SampleTokens:
    corpus = draft.corpora[-1]
    starts = texts.index(corpus)[:, 1]
    skip_first = rule_of(draft).skip_first
    return SampleTokens(texts.tokens(corpus), starts, corpus.bos_token_id, skip_first)


def _sink_norm(check: LoadCheck) -> float | None:
    return check.sink_threshold * check.median_norm if check.sink_threshold else None
