"""The vocabulary: exact bytes and a readable string for each token id.

How a vocabulary spells bytes is read from the tokenizer's own decoder and pre-tokenizer:

- byte-level (GPT-2, Llama 3, Qwen, SmolLM2): one printable character per byte;
- SentencePiece (Llama 2, Gemma, T5): ``▁`` for a space, ``<0xAB>`` for a single byte;
- WordPiece (BERT): ``##`` continues a word, anything else begins one after a space;
- word ends (OpenAI GPT, CLIP): ``</w>`` for a space;
- otherwise a token is its own text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

ToBytes = Callable[[str], bytes]


def vocabulary(tokenizer: Any, size: int | None = None) -> pa.Table:
    """Return one row per token id, from 0 to `size` - 1, or to the highest id if `size` is None.

    `bytes` are what the token contributes to a text, so that those of a text's tokens joined
    are the text in UTF-8 (byte-level vocabularies, after the tokenizer's normalizer; the others
    put a space before the first word). `text` is `bytes` as UTF-8, a byte that is not part of a
    whole character as ``<0xE6>``.
    `special` is as the tokenizer says. An id that stands for nothing has no bytes, and the text
    ``<unused ID>``. Without a tokenizer no id stands for text, and each has the text ``<ID>``.
    """
    if tokenizer is None:
        names = [f"<{number}>" for number in range(size or 0)]
        return _table([b""] * len(names), names, [False] * len(names))
    tokens, to_bytes = _tokens(tokenizer)
    added = {
        int(number): (str(token.content), bool(token.special))
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    count = max([*tokens, *added], default=-1) + 1 if size is None else size
    spelled: list[bytes] = []
    texts: list[str] = []
    special: list[bool] = []
    for number in range(count):
        if number in added:
            # Added tokens are matched in the text as it is, before any spelling.
            content, is_special = added[number]
            spelled.append(content.encode("utf-8", "replace"))
        elif number in tokens:
            is_special = False
            spelled.append(to_bytes(tokens[number]))
        else:
            is_special = False
            spelled.append(b"")
        known = number in added or number in tokens
        texts.append(_readable(spelled[-1]) if known else f"<unused {number}>")
        special.append(is_special)
    return _table(spelled, texts, special)


def known_ids(tokenizer: Any, size: int) -> npt.NDArray[np.bool_]:
    """Which ids below `size` are tokens, bool [size]: rows of an embedding may be padding."""
    known = np.ones(size, bool)
    if tokenizer is not None:
        ids = {*_tokens(tokenizer)[0], *map(int, tokenizer.added_tokens_decoder)}
        known[:] = False
        known[[number for number in ids if number < size]] = True
    return known


def _table(spelled: Sequence[bytes], texts: Sequence[str], special: Sequence[bool]) -> pa.Table:
    columns = [
        pa.array(range(len(texts)), pa.uint32()),
        pa.array(spelled, pa.binary()),
        pa.array(texts, pa.string()),
        pa.array(special, pa.bool_()),
    ]
    return pa.Table.from_arrays(columns, schema=schemas.VOCABULARY)


def _readable(spelling: bytes) -> str:
    """UTF-8, with the bytes that are no character spelled out, as byte tokens usually are."""
    text = spelling.decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)


def _tokens(tokenizer: Any) -> tuple[dict[int, str], ToBytes]:
    """The vocabulary by id, and how its tokens spell bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokens = {number: token for token, number in tokenizer.get_vocab().items()}
        return tokens, _slow_spelling(tokenizer)
    tokens = {number: token for token, number in backend.get_vocab().items()}
    return tokens, _spelling(json.loads(backend.to_str()))


def _spelling(definition: dict[str, Any]) -> ToBytes:
    """The spelling that a ``tokenizer.json`` implies."""
    steps = [
        step
        for key in ("decoder", "pre_tokenizer", "normalizer")
        for step in _steps(definition.get(key))
    ]
    kinds = {step["type"] for step in steps}
    model = definition["model"]
    if "ByteLevel" in kinds:
        return _from_byte_level
    if "WordPiece" in kinds or model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return partial(_from_word_piece, prefix=prefix)
    suffix = model.get("end_of_word_suffix")
    if "BPEDecoder" in kinds or suffix:
        return partial(_from_word_ends, suffix=suffix or "</w>")
    replaces_space = any(
        step["type"] == "Replace" and _SPACE in (step.get("content"), *_patterns(step))
        for step in steps
    )
    bytes_alone = "ByteFallback" in kinds or bool(model.get("byte_fallback"))
    if bytes_alone or "Metaspace" in kinds or replaces_space:
        return _from_sentence_piece if bytes_alone else _from_metaspace
    return _as_it_is


def _slow_spelling(tokenizer: Any) -> ToBytes:
    """The spelling of a tokenizer written in Python, by what it carries for decoding."""
    if hasattr(tokenizer, "byte_decoder"):
        return _from_byte_level
    if hasattr(tokenizer, "sp_model"):
        return _from_sentence_piece
    return (
        partial(_from_word_piece, prefix="##")
        if hasattr(tokenizer, "wordpiece_tokenizer")
        else _as_it_is
    )


def _steps(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A component of a ``tokenizer.json`` and, if it is a sequence, those inside it."""
    if component is None:
        return
    yield component
    for key in ("decoders", "pretokenizers", "normalizers"):
        for step in component.get(key, ()):
            yield from _steps(step)


def _patterns(step: dict[str, Any]) -> Iterator[str]:
    pattern = step.get("pattern")
    yield from pattern.values() if isinstance(pattern, dict) else ()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable Latin-1 stands for itself, the rest for 256 and up.

    From `bytes_to_unicode` in the encoder released with GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    return dict(zip(characters, [*printable, *others], strict=True))


_BYTES_BY_CHARACTER = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTES_BY_CHARACTER[character] for character in token)
    except KeyError:
        return _as_it_is(token)


def _from_sentence_piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else _from_metaspace(token)


def _from_metaspace(token: str) -> bytes:
    return _as_it_is(token.replace(_SPACE, " "))


def _from_word_piece(token: str, *, prefix: str) -> bytes:
    continues = token.startswith(prefix) and token != prefix
    return _as_it_is(token.removeprefix(prefix) if continues else " " + token)


def _from_word_ends(token: str, *, suffix: str) -> bytes:
    ends = token.endswith(suffix)
    return _as_it_is(token.removesuffix(suffix) + " " if ends else token)


def _as_it_is(token: str) -> bytes:
    return token.encode("utf-8", "replace")
