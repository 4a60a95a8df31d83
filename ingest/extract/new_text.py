"""Tokens run through a database's own model and SAEs: what an ingest of them would store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.store import schemas
from featuredb.store.snapshot import Corpus
from featuredb.store.store import Store
from ingest.attached import ModelWithSaes
from ingest.corpus.chat import Chat
from ingest.extract.batches import batches
from ingest.extract.forward import Rule, run_batch
from ingest.extract.recorded import recorded
from ingest.model.load import LoadedModel, no_tokenizer
from ingest.tokens.contexts import TokenizedBatch, ranges
from ingest.tokens.tokenize import tokenize_batch, tokenize_chats

_BATCH_TOKENS = 4_096
_GPU_BATCH_TOKENS = 32_768


class EncodedTokens(NamedTuple):
    """Activations of one SAE on a text, all [n], sorted by (token_index, feature_id).

    token_index int64 counts the text's own tokens, without BOS.
    """

    sae: str
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: schemas.FloatArray


class EncodedText(NamedTuple):
    """What fires on a text. tokens: the text of each token. roles: of a chat's tokens."""

    tokens: list[str]
    encoded: list[EncodedTokens]
    roles: list[str] | None = None


class EncodedContexts(NamedTuple):
    """Activations of one SAE on some contexts, all [n], not rounded.

    context int64: which of the given contexts. token_index int64 counts BOS.
    """

    context: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: npt.NDArray[np.float32]


def encode_texts(store: Store, texts: Sequence[str], where: str | None = None) -> list[EncodedText]:
    """Run texts through the model and every SAE of the snapshot, in batches over all of them.

    They are tokenized, cut and rounded as at ingest, without BOS and sinks. An empty text has no
    tokens and no activations. where: the model is now. Raises as `ingest.extract.recorded`.
    """
    loaded = recorded(store, where)
    return encode_tokenized(store, loaded, tokenized_texts(store, loaded.model, texts))


def tokenized_texts(store: Store, model: LoadedModel, texts: Sequence[str]) -> TokenizedBatch:
    """Texts as contexts, cut as the database's own are. Raises `ModelError`."""
    return _tokenized(store, model, tokenize_batch, texts)


def tokenized_chats(store: Store, model: LoadedModel, chats: Sequence[Chat]) -> TokenizedBatch:
    """Chats as contexts with a role per token. Raises `ModelError`, `CorpusError`."""
    return _tokenized(store, model, tokenize_chats, chats)


def _tokenized(store: Store, model: LoadedModel, tokenize: Any, given: Any) -> TokenizedBatch:
    corpus = store.snapshot.corpora[0]
    if model.tokenizer is None:
        raise no_tokenizer(model.path)
    with model.lock:
        made: TokenizedBatch = tokenize(
            model.tokenizer,
            given,
            context_size=corpus.context_size,
            bos_id=corpus.bos_token_id,
            stride=corpus.stride,
            vocab_size=model.vocab_size,
        )
    return made


def encode_tokenized(
    store: Store, loaded: ModelWithSaes, tokenized: TokenizedBatch
) -> list[EncodedText]:
    """What the SAEs of `loaded` have active on texts, see `encode_texts`."""
    model, saes = loaded.model, loaded.saes
    snapshot = store.snapshot
    corpus = snapshot.corpora[0]
    n_texts = len(tokenized.n_tokens)
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    bos = int(corpus.bos_token_id is not None)
    # Where windows overlap, a token counts in the first that has it, as of a stored document.
    lengths = np.diff(starts) - bos
    first = tokenized.context_index * (corpus.stride or corpus.context_size - bos)
    covered = np.concatenate(([0], (first + lengths)[:-1]))[: len(lengths)]
    covered = np.where(tokenized.context_index == 0, 0, covered)
    skipped = bos + covered - first
    own = ranges(starts[:-1] + skipped, lengths + bos - skipped)
    text_ids = tokenized.token_ids[own]
    rule = Rule(bool(bos), snapshot.recording.values)
    pieces: list[list[_Placed]] = [[] for _ in saes]
    most = _BATCH_TOKENS if model.device.type == "cpu" else _GPU_BATCH_TOKENS
    budget = int(max(most, corpus.context_size))
    for batch in batches(tokenized.token_ids, starts, budget) if len(starts) > 1 else ():
        for parts, rows in zip(pieces, run_batch(model, saes, batch, rule), strict=True):
            context = batch.contexts[rows.row]
            new = rows.token_index >= skipped[context]
            parts.append(
                _Placed(
                    tokenized.context_document[context[new]],
                    (first[context] + rows.token_index - bos)[new],
                    rows.feature_id[new],
                    rows.activation[new],
                )
            )
    token_texts = store.texts.token_texts
    ends = np.cumsum(tokenized.n_tokens)
    by_sae = [_by_text(a.name, p, n_texts) for a, p in zip(saes, pieces, strict=True)]
    roles: list[list[str] | None] = [None] * n_texts
    if tokenized.roles is not None:
        names = tokenized.role_names
        roles = [[names[i] for i in r] for r in np.split(tokenized.roles[own], ends)[:n_texts]]
    return [
        EncodedText(
            [token_texts[i] for i in ids], [encoded[number] for encoded in by_sae], roles[number]
        )
        for number, ids in enumerate(np.split(text_ids, ends)[:n_texts])
    ]


def encode_contexts(
    store: Store, corpus: Corpus, contexts: Sequence[npt.NDArray[Any]], where: str | None = None
) -> list[EncodedContexts]:
    """Run stored contexts of a corpus through the model and the SAEs again.

    Args:
        store: The database.
        corpus: The corpus of the contexts.
        contexts: The token ids of each, at least one.
        where: The model is now. Default: where it was.

    Returns:
        One record per SAE of the snapshot.

    Raises:
        ModelError: The model is missing, or another than at the ingest.
        SaeError: So is an SAE that the database does not keep.
    """
    loaded = recorded(store, where)
    model, saes = loaded.model, loaded.saes
    starts = np.cumsum([0, *map(len, contexts)])
    rule = Rule(Rule.of(store.snapshot, corpus).skip_first, "float32")
    budget = max(_BATCH_TOKENS, corpus.context_size)
    pieces: list[list[EncodedContexts]] = [[] for _ in saes]
    for batch in batches(np.concatenate(contexts), starts, budget):
        for parts, rows in zip(pieces, run_batch(model, saes, batch, rule), strict=True):
            context = batch.contexts[rows.row]
            activation = rows.activation.astype(np.float32)
            parts.append(EncodedContexts(context, rows.token_index, rows.feature_id, activation))
    return [EncodedContexts(*map(np.concatenate, zip(*parts, strict=True))) for parts in pieces]


class _Placed(NamedTuple):
    """Activations of one SAE on some texts, all [n]."""

    text: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: schemas.FloatArray


def _by_text(name: str, pieces: list[_Placed], n_texts: int) -> list[EncodedTokens]:
    """The activations of one SAE on each text."""
    none = np.empty(0, np.int64)
    pieces = pieces or [_Placed(none, none, none.astype(np.uint32), none.astype(np.float16))]
    text, place, feature, activation = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((feature, place, text))
    bounds = np.searchsorted(text[order], np.arange(1, n_texts))
    columns = (np.split(part[order], bounds) for part in (place, feature, activation))
    return [EncodedTokens(name, *each) for each in zip(*columns, strict=True)]
