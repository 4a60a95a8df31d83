"""Tokenize documents whole, without special tokens, and cut them to contexts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from featuredb.errors import CorpusError
from featuredb.render.progress import log
from ingest.corpus import CorpusReader
from ingest.corpus.chat import Chat, parse_chat, render_chat
from ingest.tokens.contexts import Cutting, Document, NameOf, TokenizedBatch, cut_contexts
from ingest.tokens.encoding import document_of, leading, owner_of, text_tokens

TEMPLATE_ROLE = "template"
_USUAL_ROLES = (TEMPLATE_ROLE, "system", "user", "assistant", "tool")


def tokenize_batch(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    context_size: int,
    bos_id: int | None,
    stride: int | None = None,
    vocab_size: int | None = None,
    name_of: NameOf = "document {}".format,
) -> TokenizedBatch:
    """Tokenize texts to contexts. `tokenizer` is from `transformers`, fast or slow.

    A slow tokenizer gives no character spans. `vocab_size`, the number of rows of the model's
    embedding, bounds the ids. `name_of(i)` names document i in errors. No texts give an empty
    batch.

    Raises:
        CorpusError: an id is not below `vocab_size`.
        ValueError: the options leave no room for a window.
    """
    cutting = Cutting(context_size, bos_id, stride, vocab_size, name_of)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        slow = [
            np.array(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)), np.uint32)
            for text in texts
        ]
        return cut_contexts([Document(ids[leading(ids, bos_id) :]) for ids in slow], cutting)
    return cut_contexts(
        [document_of(each, cutting) for each in text_tokens(tokenizer, texts)], cutting
    )


def tokenize_chats(
    tokenizer: Any,
    chats: Sequence[Chat],
    *,
    context_size: int,
    bos_id: int | None,
    stride: int | None = None,
    vocab_size: int | None = None,
    name_of: NameOf = "document {}".format,
) -> TokenizedBatch:
    """Tokenize chats, through the tokenizer's template, to contexts with a role per token.

    A token has the role of the message that its first character is from, white space before a word
    aside. Headers, turn ends and other text of the template have the role ``template``. A BOS that
    the template writes first is not doubled. A chat without messages is a document without tokens.

    Raises:
        CorpusError: there is no template, it refuses a chat, the tokenizer is a slow one, or an
            id is not below `vocab_size`.
        ValueError: the options leave no room for a window.
    """
    cutting = Cutting(context_size, bos_id, stride, vocab_size, name_of)
    names = list(_USUAL_ROLES)
    roles = {message["role"] for chat in chats for message in chat}
    names += sorted(roles.difference(names))
    if len(names) > 256:
        raise CorpusError(f"the chats have {len(names)} roles; at most 256 can be told apart")
    codes = {name: code for code, name in enumerate(names)}

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise CorpusError("chats need a fast tokenizer, which knows where its tokens come from")
    rendered = [render_chat(tokenizer, chat, name_of(i)) for i, chat in enumerate(chats)]
    texts = tuple(each.text for each in rendered)
    documents = []
    for chat, text, tokens in zip(chats, rendered, text_tokens(tokenizer, texts), strict=True):
        # The last is of `NO_MESSAGE`.
        of_owner = np.array([*(codes[m["role"]] for m in chat), codes[TEMPLATE_ROLE]], np.uint8)
        owners = owner_of(tokens, text.text, text.owner)
        documents.append(document_of(tokens, cutting, roles=of_owner[owners]))
    return cut_contexts(documents, cutting, role_names=tuple(names), texts=texts)


def cut_tokens(
    tokens: Any,
    *,
    context_size: int,
    bos_id: int | None,
    stride: int | None = None,
    vocab_size: int | None = None,
    name_of: NameOf = "document {}".format,
) -> TokenizedBatch:
    """Cut documents given as token ids (an Arrow list array) to contexts.

    A document that begins with `bos_id` does not get a second one. Character spans are -1.

    Raises:
        CorpusError: an id is null, negative, or not below `vocab_size`.
        ValueError: the options leave no room for a window.
    """
    cutting = Cutting(context_size, bos_id, stride, vocab_size, name_of)
    values = tokens.flatten()
    if values.null_count:
        raise CorpusError("a list of token ids holds a null; leave such documents out")
    lengths = np.asarray(tokens.value_lengths().fill_null(0), np.int64)
    flat = np.asarray(values, np.int64)
    if len(flat) and flat.min() < 0:
        raise CorpusError(f"a list of token ids holds {flat.min()}; ids are not negative")
    ends = np.cumsum(lengths)[:-1]
    pieces = np.split(flat.astype(np.uint32), ends) if len(lengths) else []
    documents = []
    for ids in pieces:
        documents.append(Document(ids[leading(ids, bos_id) :]))
    return cut_contexts(documents, cutting)


def iter_contexts(
    corpus: CorpusReader,
    tokenizer: Any,
    *,
    context_size: int,
    bos_id: int | None,
    stride: int | None = None,
    vocab_size: int | None = None,
    batch_documents: int = 256,
    workers: int = 0,
) -> Iterator[tuple[Any, TokenizedBatch]]:
    """Yield each batch of the corpus with its contexts, in order.

    With `workers` 0 a batch is tokenized on demand. Otherwise that many threads tokenize up to
    twice as many batches ahead. The tokenizer releases the GIL and uses all cores itself, so one
    thread is enough to overlap with a consumer on a device.

    Raises:
        CorpusError: see `CorpusReader.batches`, `tokenize_batch`, `tokenize_chats`, `cut_tokens`.
        ValueError: the options leave no room for a window.
    """
    options = {
        "context_size": context_size,
        "bos_id": bos_id,
        "stride": stride,
        "vocab_size": vocab_size,
    }
    work = partial(_tokenize_documents, tokenizer, corpus.column.role, options)
    if corpus.column.role == "messages" and "strftime_now" in str(tokenizer.chat_template):
        log.info("the chat template may write today's date into every chat")
    batches = corpus.batches(batch_documents)
    if workers == 0:
        for batch in batches:
            yield batch, work(batch)
        return
    pending: deque[tuple[Any, Future[TokenizedBatch]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="featuredb-tokens") as pool:
        try:
            for batch in batches:
                pending.append((batch, pool.submit(work, batch)))
                if len(pending) > 2 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _tokenize_documents(
    tokenizer: Any, role: str, options: dict[str, int | None], batch: Any
) -> TokenizedBatch:
    sources, offsets = batch.column("source"), batch.column("source_offset")

    def name_of(index: int) -> str:
        return f"{sources[index].as_py()}, row {offsets[index].as_py()}"

    given: dict[str, Any] = {**options, "name_of": name_of}
    documents = batch.column(role)
    if role == "tokens":
        return cut_tokens(documents, **given)
    if role == "messages":
        chats = [parse_chat(row, name_of(i)) for i, row in enumerate(documents.to_pylist())]
        return tokenize_chats(tokenizer, chats, **given)
    return tokenize_batch(tokenizer, documents.to_pylist(), **given)
