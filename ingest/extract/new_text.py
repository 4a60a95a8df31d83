"""Tokens run through a database's own model and SAEs: what an ingest of them would store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import ModelError, SaeError
from featuredb.store import schemas
from featuredb.store.snapshot import Corpus, Model, Sae, Snapshot
from ingest.attached import AttachedSae
from ingest.extract.batches import batches
from ingest.extract.forward import Rule, run_batch
from ingest.model.load import LoadedModel, load_model, no_tokenizer
from ingest.sae import LoadedSae, load_sae
from ingest.sae.centered_weights import on_plain_weights
from ingest.tokens.contexts import ranges
from ingest.tokens.tokenize import tokenize_batch

_BATCH_TOKENS = 4_096

_LOADING = threading.RLock()
"""A model or an SAE is loaded once, however many threads ask for it first."""


class EncodedTokens(NamedTuple):
    """Activations of one SAE on a text, all [n], sorted by (token_index, feature_id).

    token_index int64 counts the text's own tokens, without BOS.
    """

    sae: str
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: schemas.FloatArray


class EncodedText(NamedTuple):
    """What fires on a text. tokens: the text of each token."""

    tokens: list[str]
    encoded: list[EncodedTokens]


class EncodedContexts(NamedTuple):
    """Activations of one SAE on some contexts, all [n], not rounded.

    context int64: which of the given contexts. token_index int64 counts BOS.
    """

    context: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: npt.NDArray[np.float32]


def encode_text(snapshot: Snapshot, text: str, token_texts: list[str]) -> EncodedText:
    """Run `text` through the model and every SAE of the snapshot.

    It is tokenized, cut and rounded as at ingest, without BOS and sinks. An empty text gives no
    tokens and no activations. The model and SAEs are loaded once per process. Raises `ModelError`
    or `SaeError` if they are missing or have changed since the ingest.
    """
    corpus = snapshot.corpora[0]
    model, saes = _loaded(snapshot)
    if model.tokenizer is None:
        raise no_tokenizer(model.path)
    with model.lock:
        tokenized = tokenize_batch(
            model.tokenizer,
            [text],
            context_size=corpus.context_size,
            bos_id=corpus.bos_token_id,
            stride=corpus.stride,
            vocab_size=model.vocab_size,
        )
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    bos = int(corpus.bos_token_id is not None)
    # Where windows overlap, a token counts in the first that has it, as of a stored document.
    lengths = np.diff(starts) - bos
    first = np.arange(len(lengths)) * (corpus.stride or corpus.context_size - bos)
    covered = np.concatenate(([0], (first + lengths)[:-1]))[: len(lengths)]
    skipped = bos + covered - first
    text_ids = tokenized.token_ids[ranges(starts[:-1] + skipped, lengths + bos - skipped)]
    tokens = [token_texts[i] for i in text_ids]
    rule = Rule(bool(bos), snapshot.recording.values)
    pieces: list[list[EncodedTokens]] = [[] for _ in saes]
    budget = int(max(_BATCH_TOKENS, corpus.context_size))
    for batch in batches(tokenized.token_ids, starts, budget) if len(starts) > 1 else ():
        for each, parts, rows in zip(
            saes, pieces, run_batch(model, saes, batch, rule), strict=True
        ):
            context = batch.contexts[rows.row]
            new = rows.token_index >= skipped[context]
            place = (first[context] + rows.token_index - bos)[new]
            parts.append(
                EncodedTokens(each.name, place, rows.feature_id[new], rows.activation[new])
            )
    return EncodedText(tokens, [_join(a.name, p) for a, p in zip(saes, pieces, strict=True)])


def encode_contexts(
    snapshot: Snapshot, corpus: Corpus, contexts: Sequence[npt.NDArray[Any]]
) -> list[EncodedContexts]:
    """Run stored contexts of a corpus through the model and the SAEs again.

    Args:
        snapshot: Names the model and the SAEs.
        corpus: The corpus of the contexts.
        contexts: The token ids of each, at least one.

    Returns:
        One record per SAE of the snapshot.

    Raises:
        ModelError: The model is missing or has changed since the ingest.
        SaeError: So has an SAE.
    """
    model, saes = _loaded(snapshot)
    starts = np.cumsum([0, *map(len, contexts)])
    rule = Rule(Rule.of(snapshot, corpus).skip_first, "float32")
    budget = max(_BATCH_TOKENS, corpus.context_size)
    pieces: list[list[EncodedContexts]] = [[] for _ in saes]
    for batch in batches(np.concatenate(contexts), starts, budget):
        for parts, rows in zip(pieces, run_batch(model, saes, batch, rule), strict=True):
            context = batch.contexts[rows.row]
            activation = rows.activation.astype(np.float32)
            parts.append(EncodedContexts(context, rows.token_index, rows.feature_id, activation))
    return [EncodedContexts(*map(np.concatenate, zip(*parts, strict=True))) for parts in pieces]


def _join(name: str, pieces: list[EncodedTokens]) -> EncodedTokens:
    if not pieces:
        none = np.empty(0, np.int64)
        return EncodedTokens(name, none, np.empty(0, np.uint32), np.empty(0, np.float16))
    place = np.concatenate([p.token_index for p in pieces])
    feature = np.concatenate([p.feature_id for p in pieces])
    activation = np.concatenate([p.activation for p in pieces])
    order = np.lexsort((feature, place))
    return EncodedTokens(name, place[order], feature[order], activation[order])


def _loaded(snapshot: Snapshot) -> tuple[LoadedModel, tuple[AttachedSae, ...]]:
    """The model and the SAEs of a snapshot, each loaded once."""
    model = recorded_model(snapshot.model)
    keep_sinks = snapshot.recording.keep_sinks
    return model, tuple(_recorded_sae(model, sae, keep_sinks) for sae in snapshot.saes)


def recorded_model(record: Model) -> LoadedModel:
    """The model of a snapshot, loaded once. Raises `ModelError` if it is missing or has changed."""
    with _LOADING:
        return _load_model(record)


@lru_cache(maxsize=1)
def _load_model(record: Model) -> LoadedModel:
    where = record.path if Path(record.path).exists() else record.id
    model = load_model(where, dtype=record.dtype, revision=record.revision)
    if model.weights_hash != record.sha256:
        raise ModelError(
            f"the model at {where} is not the one this database was ingested with: "
            f"put back the weights with SHA-256 {record.sha256[:12]}…"
        )
    return model


@lru_cache(maxsize=64)
def _load_sae(source: str, sha256: str) -> LoadedSae:
    sae = load_sae(source)
    if sae.hash != sha256:
        raise SaeError(
            f"the SAE at {source} is not the one this database was ingested with: "
            f"put back the weights with SHA-256 {sha256[:12]}…"
        )
    return sae


def _recorded_sae(model: LoadedModel, record: Sae, keep_sinks: bool) -> AttachedSae:
    """An SAE of a snapshot at its hook. Raises `SaeError` if it is missing or has changed."""
    with _LOADING:
        sae = _load_sae(record.source, record.sha256)
    check = record.check
    sink_norm = None
    if not keep_sinks and check.sink_threshold is not None:
        sink_norm = check.sink_threshold * check.median_norm
    hook = model.hook(record.hook)
    sae = on_plain_weights(sae, model, hook).to(device=model.device)
    return AttachedSae(record.name, sae, hook, sink_norm=sink_norm, excluded=record.excluded_tokens)
