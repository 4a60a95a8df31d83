"""What comes before the first partition, in stages that each give the next a frozen record.

`StoredCorpus` → `LoadReport` → `StoredDirections` → `RunPlan`, for a new database, for one more
corpus and for more SAEs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from featuredb.render.progress import log
from featuredb.store.corpora import Texts
from featuredb.store.files.atomic import folder_in_place, remove_tree, write_atomically
from featuredb.store.files.memory import Budget
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry, now
from featuredb.store.layout import Layout
from featuredb.store.positions import position_bits
from featuredb.store.snapshot import (
    Corpus,
    Draft,
    File,
    LoadCheck,
    NextIds,
    Recording,
    Sae,
    Snapshot,
    Vectors,
)
from featuredb.store.vectors.directions import Directions, fresh_table, table_of, write_vectors
from ingest.attached import ModelWithSaes
from ingest.change import next_draft
from ingest.corpus.naming import corpus_name
from ingest.corpus.stored_texts import StoredTexts
from ingest.derive.logits import logit_lens
from ingest.extract.device import DeviceMemory
from ingest.extract.feature_orders import with_feature_orders
from ingest.extract.forward import Rule
from ingest.inputs import Inputs
from ingest.load_check.check import SAMPLE_TOKENS, CheckedSae, check_load
from ingest.load_check.sample import SampleTokens
from ingest.model.load import LoadedModel, unembedding
from ingest.options import IngestOptions
from ingest.run_plan import RunPlan, cut_partitions, new_plan_id, partition_tokens, write_plan
from ingest.sae.stored import keep
from ingest.tokens.store import CorpusHeader, store_corpus
from ingest.tokens.vocabulary import known_ids, vocabulary

_CPU_BATCH_TOKENS = 4_096
_GPU_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class RunSettings:
    """How the model is run and what is recorded.

    batch_tokens: padded tokens per forward pass. sink_threshold: None to record sinks too. check:
    refuse SAEs that do not explain the model's activations. bos_chosen: the user said whether
    contexts begin with BOS. memory: host memory to aim for.
    """

    batch_tokens: int
    sink_threshold: float | None
    recording: Recording
    check: bool
    bos_chosen: bool
    memory: Budget

    @classmethod
    def of(cls, options: IngestOptions, device: torch.device) -> Self:
        """The settings that `options` ask for on a device."""
        default = _CPU_BATCH_TOKENS if device.type == "cpu" else _GPU_BATCH_TOKENS
        return cls(
            batch_tokens=options.batch_tokens or default,
            sink_threshold=None if options.keep_sinks else options.sink_threshold,
            recording=options.recording(),
            check=options.check,
            bos_chosen=options.bos is not None,
            memory=options.budget(),
        )


@dataclass(frozen=True)
class StoredCorpus:
    """The draft of a snapshot with stored corpora, and those of them to run."""

    draft: Draft
    corpora: tuple[Corpus, ...]


@dataclass(frozen=True)
class LoadReport:
    """What the load check measured, by SAE. batch_tokens: what the device had memory for."""

    corpus: StoredCorpus
    measured: Mapping[str, CheckedSae]
    batch_tokens: int

    @property
    def counts(self) -> dict[str, npt.NDArray[np.int64]]:
        """How often each feature fired."""
        return {name: measured.counts for name, measured in self.measured.items()}

    def fitted(self, settings: RunSettings) -> RunSettings:
        """The settings with batches that fit."""
        return replace(settings, batch_tokens=self.batch_tokens)

    def with_checks(self) -> Draft:
        """The draft, in which the SAEs that it has have these measurements too."""
        saes = (
            msgspec.structs.replace(sae, checks=(*sae.checks, *self.measured[sae.name].corpora))
            for sae in self.corpus.draft.saes
        )
        return msgspec.structs.replace(self.corpus.draft, saes=tuple(saes))


@dataclass(frozen=True)
class StoredDirections:
    """The complete draft, with the corpora and the SAEs to run."""

    draft: Draft
    corpora: tuple[Corpus, ...]
    saes: tuple[Sae, ...]


def plan_ingest(
    layout: Layout, inputs: Inputs, settings: RunSettings, identity: Mapping[str, str]
) -> RunPlan:
    """Plan a new database.

    What a failure leaves on the disk is replaced by the next call. Raises `CorpusError`,
    `LoadCheckError`.
    """
    _clear_staging(layout)
    draft = Draft(
        number=1,
        position_bits=position_bits(inputs.context_size),
        model=inputs.model_record(),
        recording=settings.recording,
        vocabulary=_store_vocabulary(layout, inputs.loaded.model),
        corpora=(),
        saes=(),
        vectors=(),
    )
    corpus = _store_corpus(layout, draft, NextIds(), inputs, identity["corpus content"])
    report = _check(layout, corpus, inputs.loaded, settings, {})
    directions = _store_directions(layout, report, inputs.loaded)
    return _write_plan(layout, directions, report.fitted(settings), identity)


def plan_append(
    layout: Layout,
    base: Snapshot,
    inputs: Inputs,
    settings: RunSettings,
    identity: Mapping[str, str],
) -> RunPlan:
    """Plan one more corpus for the SAEs of `base`. Raises as `plan_ingest`.

    Sinks are those of the first ingest: a position is a sink by the same norm in every corpus.
    """
    _clear_staging(layout)
    draft = next_draft(base, "append")
    corpus = _store_corpus(layout, draft, base.unused_ids(), inputs, identity["corpus content"])
    medians = {sae.name: sae.check.median_norm for sae in base.saes}
    report = _check(layout, corpus, inputs.loaded, settings, medians)
    draft = with_feature_orders(layout, report.with_checks(), report.counts)
    # Databases did not always keep them.
    saes = {a.name: a.sae for a in inputs.loaded.saes}
    kept = [
        r if r.weights else msgspec.structs.replace(r, weights=keep(layout, saes[r.name]))
        for r in draft.saes
    ]
    draft = msgspec.structs.replace(draft, saes=tuple(kept))
    directions = StoredDirections(draft, corpus.corpora, draft.saes)
    return _write_plan(layout, directions, report.fitted(settings), identity)


def plan_saes(
    layout: Layout,
    base: Snapshot,
    loaded: ModelWithSaes,
    settings: RunSettings,
    identity: Mapping[str, str],
) -> RunPlan:
    """Plan more SAEs over the corpora of `base`. Raises as `plan_ingest`."""
    _clear_staging(layout)
    corpus = StoredCorpus(next_draft(base, "add-sae"), base.corpora)
    report = _check(layout, corpus, loaded, settings, _known_medians(base, loaded, settings))
    directions = _store_directions(layout, report, loaded)
    return _write_plan(layout, directions, report.fitted(settings), identity)


def logits_path(layout: Layout, sae: str) -> Path:
    """Where an SAE's logit lens waits for the snapshot."""
    return layout.staging / f"logits.{table_of(sae)}.parquet"


def _clear_staging(layout: Layout) -> None:
    remove_tree(layout.staging)
    layout.staging.mkdir(parents=True)


def _store_vocabulary(layout: Layout, model: LoadedModel) -> File:
    final = layout.corpora / "vocabulary"
    remove_tree(final)
    with folder_in_place(final) as folder:
        words = vocabulary(model.tokenizer, model.vocab_size)
        path = folder / "vocabulary.parquet"
        pq.write_table(words, path, compression="zstd")
        return file_entry(layout, path, folder, final, words.num_rows)


def _store_corpus(
    layout: Layout, draft: Draft, ids: NextIds, inputs: Inputs, fingerprint: str
) -> StoredCorpus:
    log.info(f"tokenizing {inputs.corpus.source}")
    header = CorpusHeader(
        id=str(ids.corpus),
        source=inputs.corpus.source,
        fingerprint=fingerprint,
        context_size=inputs.context_size,
        stride=inputs.stride,
        bos=inputs.bos,
        metadata=inputs.corpus.metadata_schema,
        first_document=ids.document,
        first_context=ids.context,
        vocab_size=inputs.loaded.model.vocab_size,
        chats=inputs.corpus.column.role == "messages",
        name=corpus_name(
            inputs.corpus.source, inputs.corpus_name, [each.called for each in draft.corpora]
        ),
    )
    corpus = store_corpus(layout, header, inputs.contexts(), inputs.max_tokens)
    _report_stored(layout, draft, corpus)
    draft = msgspec.structs.replace(draft, corpora=(*draft.corpora, corpus))
    return StoredCorpus(draft, (corpus,))


def _report_stored(layout: Layout, draft: Draft, corpus: Corpus) -> None:
    """Say how many texts of a new corpus the others have."""
    repeated = StoredTexts(layout, draft.corpora).repeated(layout, corpus)
    for name, count in repeated.items():
        log.warning(
            f"{count:,} of {corpus.n_documents:,} texts are stored already, in corpus {name}: they "
            "count twice from now on; --skip-stored leaves them out"
        )


def _known_medians(
    base: Snapshot, loaded: ModelWithSaes, settings: RunSettings
) -> dict[str, float]:
    """The median norms that other SAEs at the same hook have fixed, by name of the new one."""
    fixed = {
        (sae.hook, sae.excluded_tokens): sae.check.median_norm
        for sae in reversed(base.saes)
        if sae.check.sink_threshold == settings.sink_threshold
    }
    places = {attached.name: (attached.hook.name, attached.excluded) for attached in loaded.saes}
    return {name: fixed[place] for name, place in places.items() if place in fixed}


def _check(
    layout: Layout,
    corpus: StoredCorpus,
    loaded: ModelWithSaes,
    settings: RunSettings,
    medians: Mapping[str, float],
) -> LoadReport:
    """Measure on a sample of every corpus. medians: as of `check_load`."""
    log.info("checking the load on a sample of the corpus")
    draft = corpus.draft
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    others = SAMPLE_TOKENS // max(1, len(corpus.corpora) - 1)
    samples = [
        SampleTokens(
            texts.tokens(each),
            texts.index(each)[:, 1],
            each.bos_token_id,
            Rule.of(draft, each).skip_first,
            (each.id,),
        ).spread(SAMPLE_TOKENS if each is corpus.corpora[0] else others)
        for each in corpus.corpora
    ]
    memory = DeviceMemory(settings.batch_tokens)
    measured = check_load(
        loaded,
        SampleTokens.of_all(samples),
        memory=memory,
        sink_threshold=settings.sink_threshold,
        refuse=settings.check,
        bos_chosen=settings.bos_chosen,
        medians=medians,
    )
    return LoadReport(corpus, measured, memory.batch_tokens)


def _store_directions(
    layout: Layout, report: LoadReport, loaded: ModelWithSaes
) -> StoredDirections:
    log.info("storing the directions and their logit lens")
    draft = report.corpus.draft
    lens = unembedding(loaded.model)
    token_texts = Texts(layout.root, draft, ParquetFiles(layout.root)).token_texts
    known = known_ids(loaded.model.tokenizer, loaded.model.vocab_size)
    vectors: list[Vectors] = []
    for attached in loaded.saes:
        sae = attached.sae
        directions = Directions(sae.W_dec.cpu().numpy(), sae.W_enc.T.contiguous().cpu().numpy())
        table_name = fresh_table(attached.name, draft.number)
        vectors.append(write_vectors(layout, attached.name, directions, table_name))
        buffer = io.BytesIO()
        effects = logit_lens(sae.W_dec, lens, token_texts, known)
        pq.write_table(effects, buffer, compression="zstd")
        write_atomically(logits_path(layout, attached.name), buffer.getvalue())
    saes = tuple(
        attached.record(measured.check, measured.corpora, keep(layout, attached.sae))
        for attached in loaded.saes
        for measured in (report.measured[attached.name],)
    )
    draft = msgspec.structs.replace(
        draft, saes=(*draft.saes, *saes), vectors=(*draft.vectors, *vectors)
    )
    draft = with_feature_orders(layout, draft, report.counts)
    return StoredDirections(draft, report.corpus.corpora, saes)


def _write_plan(
    layout: Layout,
    directions: StoredDirections,
    settings: RunSettings,
    identity: Mapping[str, str],
) -> RunPlan:
    """Cut the corpora into partitions and write the plan."""
    draft, saes = directions.draft, directions.saes
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    starts = {corpus.id: texts.index(corpus)[:, 1] for corpus in directions.corpora}
    total = sum(int(ends[-1]) for ends in starts.values())
    size = partition_tokens(total, sum(sae.check.l0 for sae in saes), settings.memory)
    plan = RunPlan(
        id=new_plan_id(),
        identity=dict(identity),
        started=now(),
        batch_tokens=settings.batch_tokens,
        sink_norms={sae.name: _sink_norm(sae.check) for sae in saes},
        draft=draft,
        corpora=tuple(corpus.id for corpus in directions.corpora),
        saes=tuple(sae.name for sae in saes),
        partitions=tuple(
            partition
            for corpus in directions.corpora
            for partition in cut_partitions(starts[corpus.id], corpus.first_context, size)
        ),
    )
    write_plan(layout, plan)
    return plan


def _sink_norm(check: LoadCheck) -> float | None:
    return check.sink_threshold * check.median_norm if check.sink_threshold else None
