"""Encode texts with a fast tokenizer: ids and the characters each comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ingest.tokens.contexts import Cutting, Document, Ints
from ingest.tokens.long_texts import PIECE_CHARACTERS, may_cut, pieces

_GROUP_CHARACTERS = 1 << 20


class TextTokens(NamedTuple):
    """The tokens of a text: ids uint32 [n]; chars(i), the characters [start, end) of token i;
    spans(), those of all, int64 [n, 2]."""

    ids: npt.NDArray[np.uint32]
    chars: Callable[[int], tuple[int, int]]
    spans: Callable[[], Ints]


def text_tokens(tokenizer: Any, texts: Sequence[str]) -> Iterator[TextTokens]:
    """Tokenize each text whole and without special tokens.

    An encoding takes some 500 bytes per token, so only those of `_GROUP_CHARACTERS` exist at a
    time (or of one longer text that cannot be cut).
    """
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may ask for either. The library's own calls reset them the same way.
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


def _of_encoding(encoding: Any) -> TextTokens:
    def spans() -> Ints:
        return np.asarray(encoding.offsets, np.int64).reshape(-1, 2)

    return TextTokens(np.array(encoding.ids, np.uint32), encoding.token_to_chars, spans)


def _of_pieces(backend: Any, text: str) -> TextTokens:
    """Tokenize a text that may be cut, a few pieces at a time to bound memory."""
    ids: list[npt.NDArray[np.uint32]] = []
    spans: list[npt.NDArray[np.uint32]] = []
    waiting = pieces(text)
    while group := list(islice(waiting, max(1, _GROUP_CHARACTERS // PIECE_CHARACTERS))):
        encodings = backend.encode_batch([piece for _, piece in group], add_special_tokens=False)
        for (first, _), encoding in zip(group, encodings, strict=True):
            ids.append(np.array(encoding.ids, np.uint32))
            spans.append(np.array(encoding.offsets, np.uint32).reshape(-1, 2) + np.uint32(first))
        # Free them before the next are made.
        del encodings, encoding
    joined = np.concatenate(spans)

    def chars(token: int) -> tuple[int, int]:
        return int(joined[token, 0]), int(joined[token, 1])

    return TextTokens(np.concatenate(ids), chars, lambda: joined.astype(np.int64))


@lru_cache(maxsize=1)
def _may_cut(tokenizer: Any) -> bool:
    return may_cut(tokenizer.backend_tokenizer.to_str())


def document_of(
    tokens: TextTokens, cutting: Cutting, roles: npt.NDArray[np.uint8] | None = None
) -> Document:
    """Make a document of a text's tokens. For a chat, `roles` has a role for each token.

    Only the ends of windows are looked up: converting all offsets is slow. A window begins where
    the token before it ended. So white space that the tokenizer trims from its offsets belongs to
    the window that holds it, and a character whose bytes are split belongs to both.
    """
    ids, chars = tokens.ids, tokens.chars
    skipped = leading(ids, cutting.bos_id)
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


def leading(ids: npt.NDArray[np.uint32], bos_id: int | None) -> int:
    """How many tokens a document begins with that are the BOS every context gets anyway.

    A chat template writes one, and so do texts that were made for a model and lists of ids.
    """
    if bos_id is None:
        return 0
    others = np.flatnonzero(ids != bos_id)
    return int(others[0]) if len(others) else len(ids)


def owner_of(tokens: TextTokens, text: str, owner: Ints) -> Ints:
    """Whose each token is, int64 [n], where owner [characters] says whose each character is.

    A token is of whom its first character is, white space before a word aside: of a template's
    space and a message's word, which are one token, the message.
    """
    spans = tokens.spans()
    if not len(spans):
        return np.empty(0, np.int64)
    # A tokenizer may leave white space out of a token's span. It lies behind the token before.
    first = np.minimum(spans[:, 0], np.concatenate(([0], spans[:-1, 1])))
    visible = np.array([not character.isspace() for character in text] + [True])
    place = np.where(visible, np.arange(len(visible)), len(visible))
    word = np.minimum.accumulate(place[::-1])[::-1][first]
    place = np.where(word < spans[:, 1], word, np.minimum(first, len(text) - 1))
    return owner[place]
