"""Contexts: windows cut from the tokens of documents.

A context is at most `context_size` tokens, the token of `bos_id` included if there is one, so
that a window is ``context_size - 1`` text tokens then and ``context_size`` otherwise. Windows of
a document follow each other without overlap, or every `stride` text tokens; the last one is the
first that reaches the document's end. Documents never share a context, and one without tokens
has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.errors import CorpusError

Ints = npt.NDArray[np.int64]
NameOf = Callable[[int], str]


@dataclass(frozen=True)
class TokenizedBatch:
    """The contexts of some documents: by document, then by position in it.

    With C contexts, T tokens (BOS included) and D documents:

    - `token_ids` uint32 [T], the contexts one after another, each with its BOS;
    - `context_lengths` int32 [C], BOS included; `context_document` int64 [C], the index of the
      document in the batch; `context_index` int32 [C], 0, 1, … within the document;
    - `char_start`, `char_end` int64 [C]: the characters of the document's text that a window
      covers, half-open. Without `stride` they follow each other, except that a character whose
      bytes two windows share belongs to both. -1 where unknown;
    - `n_tokens` int64 [D], text tokens without BOS;
    - for chats, `roles` uint8 [T], indices into `role_names`, and `texts`, the D conversations
      as the template renders them, which the characters count in.
    """

    token_ids: npt.NDArray[np.uint32]
    context_lengths: npt.NDArray[np.int32]
    context_document: Ints
    context_index: npt.NDArray[np.int32]
    char_start: Ints
    char_end: Ints
    n_tokens: Ints
    roles: npt.NDArray[np.uint8] | None = None
    role_names: tuple[str, ...] = ()
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Cutting:
    """How documents become contexts; the names are those of the public functions."""

    context_size: int
    bos_id: int | None
    stride: int | None
    vocab_size: int | None
    name_of: NameOf

    @property
    def window(self) -> int:
        """Text tokens of a full context.

        Raises:
            ValueError: the options leave no room for a window.
        """
        window = self.context_size - (self.bos_id is not None)
        if window < 1:
            raise ValueError(f"context_size {self.context_size} leaves no room for text")
        if self.stride is not None and not 1 <= self.stride <= window:
            raise ValueError(f"stride has to be from 1 to {window}, not {self.stride}")
        return window


@dataclass(frozen=True)
class Document:
    """The text tokens of one document, for a chat their roles, and its windows' characters."""

    ids: npt.NDArray[np.uint32]
    roles: npt.NDArray[np.uint8] | None = None
    char_start: Ints | None = None
    char_end: Ints | None = None


@dataclass(frozen=True)
class _Windows:
    """Per context: the document, the index in it, the first text token and how many."""

    document: Ints
    index: Ints
    start: Ints
    length: Ints


def cut_contexts(
    documents: Sequence[Document],
    cutting: Cutting,
    role_names: tuple[str, ...] = (),
    texts: tuple[str, ...] | None = None,
) -> TokenizedBatch:
    """Documents to contexts; no documents give an empty batch.

    Raises:
        CorpusError: an id is not below `vocab_size`.
        ValueError: the options leave no room for a window.
    """
    lengths = np.array([len(each.ids) for each in documents], np.int64)
    windows = _windows(lengths, cutting)
    joined = _joined([each.ids for each in documents], np.uint32)
    if cutting.vocab_size is not None and len(joined) and joined.max() >= cutting.vocab_size:
        place = int((joined >= cutting.vocab_size).argmax())
        document = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
        raise CorpusError(
            f"{cutting.name_of(document)} has token id {joined[place]}, but the model knows only "
            f"ids below {cutting.vocab_size}; use the model's own tokenizer"
        )
    # Where each window's tokens lie in the documents laid end to end, and where they go.
    before = np.cumsum(lengths) - lengths
    source = ranges(before[windows.document] + windows.start, windows.length)
    sizes = windows.length + (cutting.bos_id is not None)
    target = ranges(np.cumsum(sizes) - windows.length, windows.length)

    total = int(sizes.sum())
    token_ids = np.full(total, cutting.bos_id or 0, np.uint32)
    token_ids[target] = joined[source]
    roles = None
    if role_names:
        roles = np.zeros(total, np.uint8)
        roles[target] = _joined([each.roles for each in documents], np.uint8)[source]
    unknown = np.full(len(sizes), -1, np.int64)
    has_chars = all(each.char_start is not None for each in documents)
    return TokenizedBatch(
        token_ids=token_ids,
        context_lengths=sizes.astype(np.int32),
        context_document=windows.document,
        context_index=windows.index.astype(np.int32),
        char_start=_joined([each.char_start for each in documents], np.int64)
        if has_chars
        else unknown,
        char_end=_joined([each.char_end for each in documents], np.int64) if has_chars else unknown,
        n_tokens=lengths,
        roles=roles,
        role_names=role_names,
        texts=texts,
    )


def ranges(starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Ints:
    """The concatenation of ``arange(starts[i], starts[i] + lengths[i])``."""
    ends = np.cumsum(lengths)
    if len(ends) == 0 or ends[-1] == 0:
        return np.empty(0, np.int64)
    offsets = np.repeat(starts - (ends - lengths), lengths)
    return np.asarray(offsets + np.arange(ends[-1]), dtype=np.int64)


def _joined(arrays: Sequence[npt.NDArray[Any] | None], dtype: Any) -> npt.NDArray[Any]:
    present = [array for array in arrays if array is not None]
    return np.concatenate([*present, np.empty(0, dtype)])


def _windows(lengths: Ints, cutting: Cutting) -> _Windows:
    """All windows of documents of these lengths, by document and then by position."""
    window = cutting.window
    stride = cutting.stride or window
    beyond = np.maximum(lengths - window, 0)
    counts = np.where(lengths > 0, -(-beyond // stride) + 1, 0)
    document = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    index = ranges(np.zeros(len(lengths), np.int64), counts)
    start = index * stride
    return _Windows(document, index, start, np.minimum(window, lengths[document] - start))
