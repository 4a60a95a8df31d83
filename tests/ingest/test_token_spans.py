"""Where tokens lie in a text, from their bytes: against the tokenizer's own offsets."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ingest.tokens.tokenize import tokenize_batch
from ingest.tokens.vocabulary import vocabulary
from queries.token_spans import UNKNOWN, token_spans
from tests.ingest.test_vocabulary import byte_level, sentence_piece

TEXTS = st.text(st.sampled_from("the cat \n\tnaïveé日本🙂👩🏽‍🚀"), max_size=24)


@cache
def llama_2() -> Any:
    """A space before the first word, and again after every special token."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("c", -3.0), ("at", -3.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@cache
def bert() -> Any:
    words = ["[UNK]", "the", "cat", "##s", ",", "sat"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def placed(tokenizer: Any, text: str, size: int = 5) -> tuple[list[tuple[int, int]], list[bytes]]:
    """(spans, bytes of the tokens) of a text cut to windows."""
    batch = tokenize_batch(tokenizer, [text], context_size=size, bos_id=None)
    spelled = vocabulary(tokenizer).column("bytes").to_pylist()
    flat = [spelled[i] for i in batch.token_ids.tolist()]
    tokens, at = [], 0
    for length in batch.context_lengths.tolist():
        tokens.append(flat[at : at + length])
        at += length
    spans = token_spans(text, tokens, batch.char_start.tolist())
    return [(start, end) for start, end in spans.tolist()], flat


def check(text: str, spans: list[tuple[int, int]], tokens: list[bytes]) -> None:
    """Each span has its token's bytes and no more characters than they touch."""
    for (start, end), token in zip(spans, tokens, strict=True):
        held = text[start:end].encode()
        assert token in held or token.removeprefix(b" ") in held
        assert len(held) <= len(token) + 6
    for (start, end), (following, _) in pairwise(spans):
        assert following <= end or text[end:following].isspace()
        assert start <= following


@given(TEXTS, st.booleans(), st.integers(1, 7))
@example("🙂 🙂", False, 1)
@settings(max_examples=60, deadline=None)
def test_byte_level(text: str, split: bool, size: int) -> None:
    tokenizer = byte_level(split)
    spans, tokens = placed(tokenizer, text, size)
    check(text, spans, tokens)
    assert spans == [tuple(span) for span in tokenizer.backend_tokenizer.encode(text).offsets]


@given(TEXTS, st.integers(1, 7))
@example(" the", 3)
@example("  ", 1)
@settings(max_examples=60, deadline=None)
def test_metaspace(text: str, size: int) -> None:
    for tokenizer in (sentence_piece(), llama_2()):
        spans, tokens = placed(tokenizer, text, size)
        # What the vocabulary does not know has no bytes: nothing here.
        check(text, spans, tokens)
        assert "".join(text[s:e] for s, e in dict.fromkeys(spans)) == text


@pytest.mark.parametrize("text", ["the cat</s> the</s>cat日", "</s></s>the", "the</s>\n at"])
def test_a_space_after_every_special_token(text: str) -> None:
    spans, tokens = placed(llama_2(), text)
    check(text, spans, tokens)
    assert "".join(text[s:e] for s, e in dict.fromkeys(spans)) == text


def test_folded_case_and_dropped_spaces() -> None:
    text = "The  CATS sat, cat"
    spans, _ = placed(bert(), text, 4)
    assert [text[s:e] for s, e in spans] == ["The", "CAT", "S", " sat", ",", " cat"]


def test_what_cannot_be_followed_has_no_span_until_the_next_context() -> None:
    text = "abc def ghi"
    spans = token_spans(text, [[b"abc", b"zzz", b" def"], [b" ghi"]], [0, 7])
    assert spans.tolist() == [[0, 3], [UNKNOWN] * 2, [UNKNOWN] * 2, [7, 11]]
    assert token_spans(text, [[b"zzz"]], [-1]).tolist() == [[UNKNOWN] * 2]
    assert token_spans("", [], []).tolist() == []
