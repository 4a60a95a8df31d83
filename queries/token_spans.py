"""Where each token of a document lies in its text, from the bytes that the vocabulary has for it.

A byte-level or metaspace tokenizer spells a text in UTF-8, byte for byte, a metaspace one perhaps
with a space before the first word. Where the tokens' bytes, joined, are the text's, every span is
exact. Where they are not, as after a template's special tokens, before which some tokenizers put a
space again, or where a tokenizer folds case or drops spaces, tokens are followed through the text
one by one. What cannot be followed has no span until the next context, whose place is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

UNKNOWN = -1


def token_spans(text: str, tokens: Sequence[Sequence[bytes]], starts: Sequence[int]) -> Int64:
    """The characters [start, end) of each token, int64 [n, 2], `UNKNOWN` where not known.

    A token that is a piece of a character has that character's span, as has every other piece.

    Args:
        text: The document's.
        tokens: The bytes of each token, context by context.
        starts: The first character of each context, negative where it was not recorded.
    """
    spelled = text.encode("utf-8", "surrogatepass")
    # characters_before[b]: how many characters begin before byte b.
    begins = (np.frombuffer(spelled, np.uint8) & 0xC0) != 0x80
    characters_before = np.concatenate(([0], np.cumsum(begins)))
    first = max(0, starts[0]) if len(starts) else 0
    base = int(np.searchsorted(characters_before, first, side="left")) if first else 0
    flat = [each for context in tokens for each in context]
    ends = np.cumsum([0, *map(len, flat)])
    joined = b"".join(flat)
    rest = spelled[base:]
    for virtual in (b"", b" "):
        if (virtual + rest).startswith(joined):
            at = np.maximum(ends - len(virtual), 0) + base
            return _characters(np.stack([at[:-1], at[1:]], axis=1), characters_before)
    spans = []
    place: int | None = base
    for context, start in zip(tokens, starts, strict=True):
        if place is None and start >= 0:
            place = int(np.searchsorted(characters_before, start, side="left"))
        for each in context:
            span = None if place is None else _next(spelled, place, each)
            spans.append(span or (UNKNOWN, UNKNOWN))
            place = None if span is None else span[1]
    return _characters(np.array(spans, np.int64).reshape(-1, 2), characters_before)


def _next(spelled: bytes, place: int, token: bytes) -> tuple[int, int] | None:
    """Where a token lies at or after a byte, from which only white space may be missing."""
    for own in (token, token.removeprefix(b" ")):
        if spelled.startswith(own, place):
            return place, place + len(own)
    own = token.strip()
    rest = spelled[place : place + len(own) + _GAP]
    gap = len(rest) - len(rest.lstrip())
    if own and rest[gap : gap + len(own)].lower() == own.lower():
        return place + gap, place + gap + len(own)
    return None


_GAP = 64
"""Bytes of white space that may lie between two tokens."""


def _characters(spans: Int64, characters_before: Int64) -> Int64:
    """Spans in bytes as spans in characters. One that begins inside a character includes it."""
    known = spans[:, 0] >= 0
    result = np.full_like(spans, UNKNOWN)
    start, end = spans[known].T
    # The character of the first byte: the last that begins at or before it.
    inside = np.minimum(start + 1, len(characters_before) - 1)
    empty = end <= start
    first = np.where(empty, characters_before[start], characters_before[inside] - 1)
    result[known] = np.stack([first, np.where(empty, first, characters_before[end])], axis=1)
    return result
