"""Estimate the size and duration of an ingest.

Tokens, contexts, documents and partitions are counted by tokenizing the corpus. The rest is
measured on the load check's sample, contexts from all over it, ingested into a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from featuredb.errors import IngestError
from featuredb.render.progress import log, shown
from featuredb.store import schemas
from featuredb.store.files.memory import Budget
from featuredb.store.layout import Layout
from featuredb.store.new_database import refuse_other_folders
from featuredb.store.snapshot import Sae, Segment
from ingest.extract.overlap import segments_at_once, writers_beside
from ingest.extract.partition import Extractor, collect, write
from ingest.inputs import Inputs, load_inputs
from ingest.load_check.check import SAMPLE_TOKENS
from ingest.operations.sampling import Sampler
from ingest.options import IngestOptions
from ingest.prepare import RunSettings, plan_ingest
from ingest.run_plan import Partition, cut_partitions, partition_tokens
from ingest.tokens.store import taken
from queries.answers import Info

_RATE_TOKENS = 4_096
"""Tokens on which the rate is measured, after the load check has warmed up caches."""

_RATE_BATCHES = 2
"""On a GPU, so many full batches instead: a part of one would leave most of it idle."""

_DERIVED_BYTES_PER_FEATURE = 4_000
"""Statistics, three neighbor tables and examples of a feature."""


@dataclass(frozen=True)
class _Counted:
    """The corpus as it would be stored. lengths: int32, tokens of each context, including BOS."""

    documents: int
    tokens: int
    lengths: npt.NDArray[np.int32]
    seconds: float

    @property
    def stored(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


@dataclass(frozen=True)
class _Measured:
    """What the sample measured.

    recorded: recorded positions per stored token, by SAE. bytes: of both copies per activation, by
    SAE. corpus_bytes: of documents and contexts per stored token. fixed_bytes: of directions and
    vocabulary.
    """

    tokens: int
    tokens_per_second: float
    recorded: list[float]
    bytes: list[float]
    corpus_bytes: float
    fixed_bytes: int
    saes: tuple[Sae, ...]


def estimate(path: Path, options: IngestOptions) -> Info:
    """Estimate what an ingest would make. Leaves nothing at `path`, or anywhere else.

    Raises what an ingest would before its first partition, including `LoadCheckError`.
    """
    layout = Layout(path.expanduser().resolve())
    refuse_other_folders(layout, IngestError)
    with shown(options.progress):
        inputs = load_inputs(options)
        settings = RunSettings.of(options, inputs.loaded.model.device)
        log.info("counting the corpus's tokens")
        counted, sample = _count(inputs, max(SAMPLE_TOKENS, _rate_tokens(inputs, settings)))
        with tempfile.TemporaryDirectory(prefix="featuredb-plan-") as folder:
            into = Layout(Path(folder) / "sample.fdb")
            measured = _measure(into, sample, settings, inputs.identity(options))
        return Info(_report(layout, inputs, settings.memory, counted, measured))


def _rate_tokens(inputs: Inputs, settings: RunSettings) -> int:
    """Tokens that the rate needs on a GPU. 0 on a CPU: the sample has enough."""
    on_cpu = inputs.loaded.model.device.type == "cpu"
    return 0 if on_cpu else _RATE_BATCHES * settings.batch_tokens


def _measure(
    layout: Layout, inputs: Inputs, settings: RunSettings, identity: Mapping[str, str]
) -> _Measured:
    plan = plan_ingest(layout, inputs, settings, identity)
    corpus = plan.draft.corpora[-1]
    fixed = sum(f.bytes for v in plan.draft.vectors for f in v.unit_files)
    fixed += _folder_bytes(layout.vectors) + plan.draft.vocabulary.bytes
    extractor = Extractor.of(layout, plan, inputs.loaded)
    (source,) = extractor.sources
    tokens = int(source.starts[-1])
    wanted = _rate_tokens(inputs, settings) or _RATE_TOKENS
    end = int(np.searchsorted(source.starts, wanted))
    end = min(max(1, end), corpus.n_contexts)
    one = (Partition(corpus.first_context, corpus.first_context + end),)
    extractor = replace(extractor, plan=msgspec.structs.replace(plan, partitions=one))
    started = time.monotonic()
    (collected,) = collect(extractor, [0], lambda *_: None)
    collected_at = time.monotonic()
    summary = write(extractor, collected)
    # The next partition runs while some are written: whichever takes longer decides.
    threads = writers_beside(inputs.loaded.model.device)
    writing = time.monotonic() - collected_at
    writing /= segments_at_once(threads, len(extractor.saes))
    seconds = max(collected_at - started, writing)
    return _Measured(
        tokens=summary.tokens,
        tokens_per_second=summary.tokens / max(seconds, 1e-9),
        recorded=[s.recorded_tokens / max(1, summary.tokens) for s in summary.segments],
        bytes=[_bytes_per_activation(s) for s in summary.segments],
        corpus_bytes=(corpus.documents.bytes + corpus.contexts.bytes) / max(1, tokens),
        fixed_bytes=fixed,
        saes=plan.draft.saes,
    )


def _bytes_per_activation(segment: Segment) -> float:
    written = sum(f.file.bytes for f in segment.feature_files)
    written += sum(f.file.bytes for f in segment.token_files)
    return written / segment.rows if segment.rows else 0.0


def _count(inputs: Inputs, sample_tokens: int) -> tuple[_Counted, Inputs]:
    """The corpus's size, and inputs of a sample of it."""
    started = time.monotonic()
    sampler = Sampler(inputs, sample_tokens)
    documents = tokens = 0
    lengths = [np.empty(0, np.int32)]
    for batch, tokenized in inputs.contexts():
        n, contexts, full = taken(tokenized, tokens, inputs.max_tokens)
        documents += n
        tokens += int(tokenized.n_tokens[:n].sum())
        lengths.append(tokenized.context_lengths[:contexts])
        sampler.add(batch, tokenized, contexts)
        if full:
            break
    seconds = time.monotonic() - started
    return _Counted(documents, tokens, np.concatenate(lengths), seconds), sampler.inputs()


def _report(
    layout: Layout,
    inputs: Inputs,
    memory: Budget,
    counted: _Counted,
    measured: _Measured,
) -> dict[str, Any]:
    stored = counted.stored
    starts = np.concatenate(([0], np.cumsum(counted.lengths, dtype=np.int64)))
    size = partition_tokens(stored, sum(sae.check.l0 for sae in measured.saes), memory)
    saes: list[dict[str, Any]] = []
    for sae, recorded, each in zip(measured.saes, measured.recorded, measured.bytes, strict=True):
        activations = round(sae.check.l0 * recorded * stored)
        saes.append(
            {
                "name": sae.name,
                "hook": sae.hook,
                "l0": sae.check.l0,
                "variance_explained": sae.check.variance_explained,
                "load_check": [msgspec.structs.asdict(check) for check in sae.checks],
                "activations": activations,
                "bytes": round(activations * each),
                "bytes_per_activation": each,
            }
        )
    width = np.dtype(schemas.token_id_dtype(inputs.loaded.model.vocab_size)).itemsize
    parts = {
        "activations_bytes": sum(sae["bytes"] for sae in saes),
        "corpus_bytes": round(stored * (measured.corpus_bytes + width)) + 16 * len(starts),
        "directions_and_vocabulary_bytes": measured.fixed_bytes,
        "derived_bytes": _DERIVED_BYTES_PER_FEATURE * sum(p.sae.d_sae for p in inputs.loaded.saes),
    }
    seconds = stored / measured.tokens_per_second
    return {
        "path": str(layout.root),
        "corpus": inputs.corpus.source,
        "documents": counted.documents,
        "contexts": len(counted.lengths),
        "tokens": counted.tokens,
        "tokens_with_bos": stored,
        "partitions": len(cut_partitions(starts, 0, size)),
        "activations": sum(sae["activations"] for sae in saes),
        "bytes": sum(parts.values()),
        "seconds": seconds + counted.seconds,
        "time": _spelled(seconds + counted.seconds),
        "saes": saes,
        "disk": parts,
        "measured": {
            "device": str(inputs.loaded.model.device),
            "sample_tokens": measured.tokens,
            "tokens_per_second": measured.tokens_per_second,
            "tokenizing_seconds": counted.seconds,
        },
        "how": {
            "activations": f"L0 of the load check on {measured.saes[0].check.tokens} tokens from "
            "all of the corpus, times the recorded share of the tokens",
            "bytes": "both copies of the sample's activations as written, per activation",
            "time": "tokenizing as just timed, the model and the SAEs, or writing "
            "if it is slower, at the sample's rate; merging and statistics come on top",
        },
    }


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _spelled(seconds: float) -> str:
    """A duration for reading."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
