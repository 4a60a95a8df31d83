"""The tokens of a corpus's documents: tokenized whole, without special tokens, for `contexts`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import CorpusError
from ingest.corpus import CorpusReader
from ingest.corpus.chat import Chat, content_spans, rendered
from ingest.tokens.contexts import Cutting, Document, Ints, NameOf, TokenizedBatch, cut_contexts
from ingest.tokens.long_texts import PIECE_CHARACTERS, may_cut, pieces

TEMPLATE_ROLE = "template"
_GROUP_CHARACTERS = 1 << 20
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
    """Texts to contexts; `tokenizer` is one of `transformers`, fast or slow.

    A slow tokenizer gives no character spans. `vocab_size`, the number of rows of the model's
    embedding, bounds the ids; `name_of(i)` names document i in errors. No texts give an empty
    batch.

    Raises:
        CorpusError: an id is not below `vocab_size`.
        ValueError: the options leave no room for a window.
    """
    cutting = Cutting(context_size, bos_id, stride, vocab_size, name_of)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        slow = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in texts]
        return cut_contexts([Document(np.array(ids, np.uint32)) for ids in slow], cutting)
    return cut_contexts([_encoded(each, cutting) for each in _tokens(tokenizer, texts)], cutting)


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
    """Conversations, through the tokenizer's chat template, to contexts with a role per token.

    A token has the role of the message whose content it begins in; headers, turn ends and
    whatever else the template writes have the role ``template``. A BOS that the template writes
    first is not doubled. A chat without messages is a document without tokens.

    Raises:
        CorpusError: there is no template, it refuses a chat, the tokenizer is a slow one, or an
            id is not below `vocab_size`.
        ValueError: the options leave no room for a window.
    """
    cutting = Cutting(context_size, bos_id, stride, vocab_size, name_of)
    names = list(_USUAL_ROLES)
    found = {message["role"] for chat in chats for message in chat}
    names += sorted(found.difference(names))
    if len(names) > 256:
        raise CorpusError(f"the chats have {len(names)} roles; at most 256 can be told apart")
    codes = {name: code for code, name in enumerate(names)}

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise CorpusError("chats need a fast tokenizer, which knows where its tokens come from")
    texts = tuple(rendered(tokenizer, chat, name_of(i)) for i, chat in enumerate(chats))
    documents = []
    for i, tokens in enumerate(_tokens(tokenizer, texts)):
        by_character = np.zeros(len(texts[i]) + 1, np.uint8)
        for message, start, end in content_spans(tokenizer, chats[i], texts[i]):
            by_character[start:end] = codes[message["role"]]
        documents.append(_encoded(tokens, cutting, roles=by_character[tokens.starts()]))
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
    """Documents that are token ids already (an Arrow list array) to contexts.

    A document that begins with `bos_id` does not get it twice. Character spans are -1.

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
        skipped = int(bos_id is not None and len(ids) > 0 and ids[0] == bos_id)
        documents.append(Document(ids[skipped:]))
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
    """Each batch of the corpus with its contexts, in the order of the corpus.

    With `workers` 0 a batch is tokenized when it is asked for. Otherwise that many threads
    tokenize up to twice as many batches ahead: the tokenizer runs outside Python's lock, and
    spreads each batch over all cores itself, so that one thread is enough to overlap with a
    consumer on a device.

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
        return tokenize_chats(tokenizer, documents.to_pylist(), **given)
    return tokenize_batch(tokenizer, documents.to_pylist(), **given)


class _Tokens(NamedTuple):
    """The tokens of a text: ids uint32 [n]; chars(i), the characters [start, end) of token i;
    starts(), where each begins, int64 [n]."""

    ids: npt.NDArray[np.uint32]
    chars: Callable[[int], tuple[int, int]]
    starts: Callable[[], Ints]


def _tokens(tokenizer: Any, texts: Sequence[str]) -> Iterator[_Tokens]:
    """The tokens of each text by a fast tokenizer, whole and without special tokens.

    An encoding is some 500 bytes a token, and its making takes more, so that only those of
    `_GROUP_CHARACTERS` exist at a time (or of one text that is longer and cannot be cut).
    """
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may ask for either, and the library's own calls reset them just so.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    group: list[str] = []
    size = 0
    for text in texts:
        cut = len(text) > PIECE_CHARACTERS and _may_cut(tokenizer)
        if group and (cut or size + len(text) > _GROUP_CHARACTERS):
            yield from map(_of_encoding, backend.encode_batch(group, add_special_tokens=False))
            group, size = [], 0
        if cut:
            yield _of_pieces(backend, text)
        else:
            group.append(text)
            size += len(text)
    if group:
        yield from map(_of_encoding, backend.encode_batch(group, add_special_tokens=False))


def _of_encoding(encoding: Any) -> _Tokens:
    def starts() -> Ints:
        return np.asarray(encoding.offsets, np.int64).reshape(-1, 2)[:, 0]

    return _Tokens(np.array(encoding.ids, np.uint32), encoding.token_to_chars, starts)


def _of_pieces(backend: Any, text: str) -> _Tokens:
    """The tokens of a text that may be cut; only a few pieces' encodings exist at a time."""
    ids: list[npt.NDArray[np.uint32]] = []
    spans: list[npt.NDArray[np.uint32]] = []
    waiting = pieces(text)
    while group := list(islice(waiting, max(1, _GROUP_CHARACTERS // PIECE_CHARACTERS))):
        encodings = backend.encode_batch([piece for _, piece in group], add_special_tokens=False)
        for (first, _), encoding in zip(group, encodings, strict=True):
            ids.append(np.array(encoding.ids, np.uint32))
            spans.append(np.array(encoding.offsets, np.uint32).reshape(-1, 2) + np.uint32(first))
        # Else they would be held while the next are made.
        del encodings, encoding
    joined = np.concatenate(spans)

    def chars(token: int) -> tuple[int, int]:
        return int(joined[token, 0]), int(joined[token, 1])

    return _Tokens(np.concatenate(ids), chars, lambda: joined[:, 0].astype(np.int64))


@lru_cache(maxsize=1)
def _may_cut(tokenizer: Any) -> bool:
    return may_cut(tokenizer.backend_tokenizer.to_str())


def _encoded(
    tokens: _Tokens, cutting: Cutting, roles: npt.NDArray[np.uint8] | None = None
) -> Document:
    """A text's tokens as a document; for a chat, `roles` has a role for each token.

    Only the ends of windows are asked for: turning all offsets into Python objects would cost a
    tenth of the tokenization. A window begins where the token before it ended, which gives white
    space that the tokenizer trims from its offsets to the window that holds it, and a character
    whose bytes are split to both.
    """
    ids, chars = tokens.ids, tokens.chars
    # What a chat template writes first may be the BOS that every context gets anyway.
    skipped = int(roles is not None and len(ids) > 0 and ids[0] == cutting.bos_id)
    end, window = len(ids), cutting.window
    starts, ends = [], []
    for first in range(skipped, end, cutting.stride or window):
        starts.append(min(chars(first)[0], chars(first - 1)[1]) if first else 0)
        ends.append(chars(min(first + window, end) - 1)[1])
        if first + window >= end:
            break
    return Document(
        ids[skipped:],
        None if roles is None else roles[skipped:],
        np.array(starts, np.int64),
        np.array(ends, np.int64),
    )
