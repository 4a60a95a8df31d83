"""The whole ingest: corpus, check, plan, partitions, finalise. Run it again and it goes on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

import featuredb
from featuredb import schemas
from featuredb.errors import DatabaseNotFoundError, IngestError
from featuredb.files import folder_in_place, remove_tree, sweep
from featuredb.layout import Layout
from featuredb.lock import write_lock
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Draft, LoadCheck, Recording, Run, Snapshot, read_snapshot
from featuredb.texts import Texts
from featuredb.vectors import Directions, table_of, write_vectors
from ingest.check import judge, measure
from ingest.corpus_store import CorpusHeader, store_corpus
from ingest.derive.logits import logit_lens
from ingest.extract import Probe, Rule
from ingest.inputs import Inputs, load_inputs
from ingest.model import unembedding
from ingest.options import IngestOptions
from ingest.partition import Engine, collect, write
from ingest.plan import (
    Plan,
    Summary,
    check_identity,
    cut_partitions,
    partition_tokens,
    read_plan,
    read_summaries,
    write_plan,
)
from ingest.progress import meter, say
from ingest.publish import clean_up, now, publish
from ingest.runs import file_entry
from ingest.tokens import iter_contexts
from ingest.vocabulary import vocabulary

_CORPUS_ID = "0"
_CPU_BATCH_TOKENS = 4_096
_GPU_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class Outcome:
    """How an ingest ended: the published snapshot, and whether there was anything to do."""

    snapshot: Snapshot
    fresh: bool


def ingest(path: str | Path, options: IngestOptions) -> Outcome:
    """Make the database at `path`, or continue making it.

    Interrupted at any moment, the same call continues and ends with the same logical content. A
    database that this very ingest already finished is left as it is. Raises `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    inputs = load_inputs(options)
    identity = inputs.identity(options)
    with write_lock(layout, "ingest"):
        published = _published(layout)
        if published is not None:
            if any(run.identity == _digest(identity) for run in published.runs):
                clean_up(layout, published)
                return Outcome(published, fresh=False)
            raise IngestError(
                f"{layout.root} already holds a database of other inputs: "
                "give another path, or delete that one first"
            )
        plan = read_plan(layout)
        if plan is None:
            sweep(layout.root)
            plan = _make_plan(layout, inputs, options, identity)
        else:
            check_identity(layout, plan.identity, identity)
        engine = _engine(layout, plan, inputs)
        summaries = _run_partitions(engine, options)
        return Outcome(_finalise(layout, plan, summaries, inputs, options), fresh=True)


def _published(layout: Layout) -> Snapshot | None:
    if not layout.current.exists():
        return None
    try:
        return read_snapshot(layout)
    except DatabaseNotFoundError:
        return None


def _digest(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(dict(sorted(identity.items())))).hexdigest()


def _make_plan(
    layout: Layout, inputs: Inputs, options: IngestOptions, identity: Mapping[str, str]
) -> Plan:
    show = options.progress
    remove_tree(layout.staging)
    layout.staging.mkdir(parents=True)
    model = inputs.model
    say(f"tokenising {inputs.corpus.source}", show=show)
    header = CorpusHeader(
        id=_CORPUS_ID,
        source=inputs.corpus.source,
        fingerprint=identity["corpus content"],
        context_size=inputs.context_size,
        stride=options.stride,
        bos_token_id=inputs.bos,
        metadata=inputs.corpus.metadata_schema,
        first_document=0,
        first_context=0,
        vocab_size=model.vocab_size,
    )
    contexts = iter_contexts(
        inputs.corpus,
        model.tokenizer,
        context_size=inputs.context_size,
        bos_id=inputs.bos,
        stride=options.stride,
    )
    corpus = store_corpus(layout, header, contexts, options.max_tokens)
    final = layout.corpora / "vocabulary"
    remove_tree(final)
    with folder_in_place(final) as folder:
        words = vocabulary(model.tokenizer, model.vocab_size)
        pq.write_table(words, folder / "vocabulary.parquet", compression="zstd")
        listed = file_entry(layout, folder / "vocabulary.parquet", folder, final, words.num_rows)
    draft = Draft(
        number=1,
        position_bits=schemas.position_bits(inputs.context_size),
        model=inputs.model_record(),
        recording=Recording(options.keep_bos, options.keep_sinks, options.exact),
        vocabulary=listed,
        corpora=(corpus,),
        saes=(),
        vectors=(),
    )
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    tokens, starts = texts.tokens(corpus), texts.index(corpus)[:, 1]
    budget = options.batch_tokens or (
        _CPU_BATCH_TOKENS if model.device.type == "cpu" else _GPU_BATCH_TOKENS
    )
    rule = Rule(inputs.bos is not None and not options.keep_bos, options.exact)
    threshold = None if options.keep_sinks else options.sink_threshold
    say("checking the load on the first tokens", show=show)
    checks = measure(
        model,
        [(p.sae, p.hook, p.hook_out) for p in inputs.saes],
        tokens, starts, budget, rule, threshold,
    )  # fmt: skip
    for placed, check in zip(inputs.saes, checks, strict=True):
        say(
            f"{placed.name} at {placed.hook.name}: variance explained "
            f"{check.variance_explained:.3f}, L0 {check.l0:.1f} on {check.tokens:,} tokens",
            show=show,
        )
        if options.check:
            judge(placed.name, placed.sae, placed.hook, check)
    say("storing the directions and their logit lens", show=show)
    vectors = []
    lens = unembedding(model)
    for placed in inputs.saes:
        sae = placed.sae
        directions = Directions(sae.W_dec.cpu().numpy(), sae.W_enc.T.contiguous().cpu().numpy())
        vectors.append(write_vectors(layout, placed.name, directions))
        table = logit_lens(sae.W_dec, lens, texts.token_texts)
        pq.write_table(table, _logits_path(layout, placed.name), compression="zstd")
    draft = msgspec.structs.replace(
        draft,
        saes=tuple(p.record(c) for p, c in zip(inputs.saes, checks, strict=True)),
        vectors=tuple(vectors),
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


def _sink_norm(check: LoadCheck) -> float | None:
    return check.sink_threshold * check.median_norm if check.sink_threshold else None


def _logits_path(layout: Layout, sae: str) -> Path:
    return layout.staging / f"logits.{table_of(sae)}.parquet"


def _engine(layout: Layout, plan: Plan, inputs: Inputs) -> Engine:
    corpus = plan.draft.corpora[-1]
    texts = Texts(layout.root, plan.draft, ParquetFiles(layout.root))
    recording = plan.draft.recording
    return Engine(
        layout=layout,
        plan=plan,
        model=inputs.model,
        probes=[Probe(p.name, p.sae, p.hook, plan.sink_norms[p.name]) for p in inputs.saes],
        rule=Rule(corpus.bos_token_id is not None and not recording.keep_bos, recording.exact),
        tokens=texts.tokens(corpus),
        starts=texts.index(corpus)[:, 1],
    )


def _run_partitions(engine: Engine, options: IngestOptions) -> list[Summary]:
    """Every partition, in order; one is written while the next one runs."""
    layout, plan = engine.layout, engine.plan
    done = read_summaries(layout, plan)
    before = sum(s.tokens for s in done.values())
    if done:
        say(f"continuing: {len(done)} of {len(plan.partitions)} partitions are done",
            show=options.progress)  # fmt: skip
    with (
        meter(int(engine.starts[-1]), before, show=options.progress) as gauge,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        writing: Future[Summary] | None = None
        for number in range(len(plan.partitions)):
            if number in done:
                continue
            collected = collect(engine, number, gauge.report)
            if writing is not None:
                finished = writing.result()
                done[finished.partition] = finished
            writing = writer.submit(write, engine, collected)
        if writing is not None:
            finished = writing.result()
            done[finished.partition] = finished
    return [done[number] for number in range(len(plan.partitions))]


def _finalise(
    layout: Layout,
    plan: Plan,
    summaries: list[Summary],
    inputs: Inputs,
    options: IngestOptions,
) -> Snapshot:
    runs = {
        placed.name: [summary.segments[index] for summary in summaries]
        for index, placed in enumerate(inputs.saes)
    }
    logits: dict[str, pa.Table] = {
        p.name: pq.read_table(_logits_path(layout, p.name)) for p in inputs.saes
    }
    history = Run(
        number=plan.draft.number,
        identity=_digest(plan.identity),
        started=plan.started,
        finished=now(),
        featuredb=featuredb.__version__,
        corpus=plan.draft.corpora[-1].id,
        saes=tuple(runs),
        tokens=sum(s.tokens for s in summaries),
        activations=sum(s.rows for own in runs.values() for s in own),
        seconds=sum(s.seconds for s in summaries),
        device=str(inputs.model.device),
        host=platform.node(),
    )
    snapshot = publish(
        layout, plan.draft, runs, logits, [history], lambda t: say(t, show=options.progress)
    )
    clean_up(layout, snapshot)
    return snapshot
