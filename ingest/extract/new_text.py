"""New text through the database's own model and SAEs: what would be stored, were it ingested."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import ModelError, SaeError
from featuredb.store import schemas
from featuredb.store.snapshot import Model, Sae, Snapshot
from ingest.extract.batches import batches
from ingest.extract.forward import Probe, Rule, run_batch
from ingest.model.load import LoadedModel, load_model
from ingest.sae import LoadedSae, load_sae
from ingest.tokens.tokenize import tokenize_batch

_LOADING = threading.RLock()
"""A model or an SAE is loaded once, however many threads ask for it first."""


class Encoded(NamedTuple):
    """Activations of one SAE on a text, all [n], sorted by (token_index, feature_id).

    token_index int64 counts the text's own tokens, BOS not among them.
    """

    sae: str
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: schemas.FloatArray


class EncodedText(NamedTuple):
    """What fires on a text. tokens: how each of its tokens reads."""

    tokens: list[str]
    encoded: list[Encoded]


def encode_text(snapshot: Snapshot, text: str, token_texts: list[str]) -> EncodedText:
    """Run `text` through the model and every SAE of the snapshot.

    Tokenised, cut, rounded and freed of BOS and sinks exactly as at ingest; an empty text gives
    no tokens and no activations. The model and SAEs are loaded once per process. Raises
    `ModelError` or `SaeError` when they are gone or have changed since the ingest.
    """
    corpus = snapshot.corpora[0]
    model = recorded_model(snapshot.model)
    probes = [recorded_probe(model, sae, snapshot.recording.keep_sinks) for sae in snapshot.saes]
    with model.lock:
        tokenized = tokenize_batch(
            model.tokenizer,
            [text],
            context_size=corpus.context_size,
            bos_id=corpus.bos_token_id,
            vocab_size=model.vocab_size,
        )
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    bos = int(corpus.bos_token_id is not None)
    own = np.delete(tokenized.token_ids, starts[:-1]) if bos else tokenized.token_ids
    tokens = [token_texts[i] for i in own]
    rule = Rule(bool(bos), snapshot.recording.values)
    found: list[list[Encoded]] = [[] for _ in probes]
    budget = int(max(4_096, corpus.context_size))
    pieces = batches(tokenized.token_ids, starts, budget) if len(starts) > 1 else iter(())
    for batch in pieces:
        for index, got in enumerate(run_batch(model, probes, batch, rule)):
            # Windows do not overlap, so a token's place in the text follows from its context.
            context = batch.contexts[got.row]
            place = starts[context] - context * bos + got.token_index - bos
            name = probes[index].name
            found[index].append(Encoded(name, place, got.feature_id, got.activation))
    return EncodedText(tokens, [_join(p.name, f) for p, f in zip(probes, found, strict=True)])


def _join(name: str, pieces: list[Encoded]) -> Encoded:
    if not pieces:
        none = np.empty(0, np.int64)
        return Encoded(name, none, np.empty(0, np.uint32), np.empty(0, np.float16))
    place = np.concatenate([p.token_index for p in pieces])
    feature = np.concatenate([p.feature_id for p in pieces])
    activation = np.concatenate([p.activation for p in pieces])
    order = np.lexsort((feature, place))
    return Encoded(name, place[order], feature[order], activation[order])


def recorded_model(record: Model) -> LoadedModel:
    """The model of a snapshot, loaded once. Raises `ModelError` when it is gone or has changed."""
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


@lru_cache(maxsize=8)
def _load_sae(source: str, sha256: str) -> LoadedSae:
    sae = load_sae(source)
    if sae.hash != sha256:
        raise SaeError(
            f"the SAE at {source} is not the one this database was ingested with: "
            f"put back the weights with SHA-256 {sha256[:12]}…"
        )
    return sae


def recorded_probe(model: LoadedModel, record: Sae, keep_sinks: bool) -> Probe:
    """An SAE of a snapshot at its hook. Raises `SaeError` when it is gone or has changed."""
    with _LOADING:
        sae = _load_sae(record.source, record.sha256).to(device=model.device)
    check = record.check
    limit = None
    if not keep_sinks and check.sink_threshold is not None:
        limit = check.sink_threshold * check.median_norm
    return Probe(record.name, sae, model.hook(record.hook), limit)
