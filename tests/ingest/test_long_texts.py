"""Pieces of a text have the tokens of the whole, with every kind of tokenizer that may be cut."""

from __future__ import annotations

import os
import re
import string
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ingest.tokens import encoding, long_texts
from ingest.tokens.long_texts import may_cut, pieces
from ingest.tokens.tokenize import tokenize_batch, tokenize_chats
from tests.tiny import tiny_model

LONG = bool(os.environ.get("FEATUREDB_LONG"))
TEXTS = [
    "The cat sat on the mat, and THE dog didn't; it's 1984 or 12 345.",
    "  two  spaces \n\n a line\tand a tab ",
    "naïve café Straße 猫が好き 🙂 I'LL  x  y",
] * 4
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pre_tokenizer: Any) -> Tokenizer:
    """Byte-level BPE, as GPT-2 and most models after it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|e|>"]
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def split(pattern: str) -> Any:
    """A regular expression, then bytes, as Llama 3 and Qwen."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gemma() -> Tokenizer:
    """BPE over the whole text, spaces replaced."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *bytes_],
        initial_alphabet=list(string.ascii_letters),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return trained


def word_piece() -> Tokenizer:
    """BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def unigram() -> Tokenizer:
    """SentencePiece's other model, a word at a time."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def digits_first() -> Tokenizer:
    """SmolLM's and StarCoder's."""
    return byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    )


CUTTABLE: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "prefixed": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": digits_first,
    "llama3": lambda: byte_level(split(LLAMA_3)),
    "qwen2": lambda: byte_level(split(QWEN_2)),
    "o200k": lambda: byte_level(split(O200K)),
    "gemma": gemma,
    "bert": word_piece,
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=CUTTABLE)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = CUTTABLE[request.param]()
    assert may_cut(made.to_str())
    return made


PIECES = ["a", "b", "the", "THE", " ", " ", " ", "  ", "\n", "'s", "é", "猫", "1", "23", ".", "🙂",
          "ΑΣ", "ß", "<|e|>", "\u0301", "\u00a0", "▁"]  # fmt: skip
WORDY = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@settings(deadline=None, max_examples=150)
@given(text=WORDY | st.sampled_from(TEXTS))
def test_cut_at_every_place_the_tokens_are_those_of_the_whole(
    tokenizer: Tokenizer, text: str
) -> None:
    whole = tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for first, piece in pieces(text, 1):
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        ids += encoding.ids
        spans += [(start + first, end + first) for start, end in encoding.offsets]
    assert ids == whole.ids
    assert spans == whole.offsets


@given(text=WORDY, size=st.integers(1, 20))
def test_pieces_are_the_text_and_begin_with_a_space_between_letters(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(piece for _, piece in found) == text
    for (first, piece), (after, following) in pairwise(found):
        assert len(piece) >= size
        assert after == first + len(piece)
        assert re.match(" [A-Za-z]", following)
        assert re.search("[A-Za-z]$", piece)


def changed(made: Tokenizer, **parts: Any) -> Tokenizer:
    other = Tokenizer.from_str(made.to_str())
    for name, part in parts.items():
        setattr(other, name, part)
    return other


def with_token(made: Tokenizer, content: str, **how: bool) -> Tokenizer:
    other = Tokenizer.from_str(made.to_str())
    other.add_tokens([AddedToken(content, **how)])
    return other


def bpe_of(*words: str) -> Tokenizer:
    """BPE without splits. Each word of two characters is a merge."""
    vocabulary = {word: i for i, word in enumerate([*string.ascii_letters, "▁", *words])}
    made = Tokenizer(models.BPE(vocabulary, [(word[0], word[1:]) for word in words]))
    made.normalizer = normalizers.Replace(" ", "▁")
    return made


LOOKING_AROUND: dict[str, Callable[[], Tokenizer]] = {
    "a prefix for every text": lambda: changed(
        gemma(),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "stripped": lambda: changed(word_piece(), normalizer=normalizers.Strip()),
    "spaces at the end of splits": lambda: changed(
        gemma(), normalizer=None, pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")
    ),
    "an unknown expression": lambda: byte_level(split(r"\p{L}+ \p{L}+|\s+|.")),
    "no expression": lambda: byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ),
    "by script": lambda: byte_level(pre_tokenizers.UnicodeScripts()),
    "a phrase": lambda: with_token(CUTTABLE["gpt2"](), "New York"),
    "a token that takes the space behind": lambda: with_token(
        CUTTABLE["gpt2"](), "the", rstrip=True
    ),
    "a token between words": lambda: with_token(CUTTABLE["gpt2"](), " the", single_word=True),
    "a merge over a space": lambda: bpe_of("a▁"),
    "trimmed unless first": lambda: changed(
        CUTTABLE["gpt2"](),
        post_processor=processors.ByteLevel(add_prefix_space=True, trim_offsets=True),
    ),
}


@pytest.mark.parametrize("why", LOOKING_AROUND)
def test_a_tokenizer_that_looks_around_is_given_the_whole(why: str) -> None:
    assert not may_cut(LOOKING_AROUND[why]().to_str())


def test_merges_decide_where_nothing_splits() -> None:
    assert may_cut(bpe_of("ab", "▁a").to_str())
    text = "ab a b ab"
    made = bpe_of("a▁")
    whole = made.encode(text).ids
    assert [i for _, piece in pieces(text, 1) for i in made.encode(piece).ids] != whole


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("bos", [None, 0])
def test_a_long_document_among_short_ones(
    monkeypatch: pytest.MonkeyPatch, bos: int | None, stride: int | None
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=CUTTABLE["gpt2"]())
    texts = ["short", " ".join(TEXTS), "", "also short", " ".join(TEXTS[:2]), "<|e|>"]
    whole = tokenize_batch(tokenizer, texts, context_size=8, bos_id=bos, stride=stride)
    asked: list[str] = []
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(encoding, "_GROUP_CHARACTERS", 35)

    def small(text: str) -> Any:
        asked.append(text)
        return long_texts.pieces(text, 10)

    monkeypatch.setattr(encoding, "pieces", small)
    cut = tokenize_batch(tokenizer, texts, context_size=8, bos_id=bos, stride=stride)
    assert asked == [texts[1], texts[4]]
    for name in ("token_ids", "context_lengths", "context_document", "context_index", "char_start",
                 "char_end", "n_tokens"):  # fmt: skip
        one, other = getattr(whole, name), getattr(cut, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other), name


def test_a_long_chat_keeps_its_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}<|e|>{{ m['content'] }}<|e|>{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=CUTTABLE["gpt2"](), chat_template=template)
    chat = [
        {"role": role, "content": text} for role, text in zip(("user", "tool"), TEXTS, strict=False)
    ]
    whole = tokenize_chats(tokenizer, [chat], context_size=8, bos_id=None)
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(encoding, "pieces", lambda text: long_texts.pieces(text, 10))
    cut = tokenize_chats(tokenizer, [chat], context_size=8, bos_id=None)
    assert whole.roles is not None
    assert cut.roles is not None
    assert whole.token_ids.tolist() == cut.token_ids.tolist()
    assert whole.roles.tolist() == cut.roles.tolist()


_MEASURE = """
import resource, sys
from pathlib import Path
from transformers import AutoTokenizer
from ingest.tokens.tokenize import tokenize_batch
tokenizer, text = AutoTokenizer.from_pretrained(sys.argv[1]), Path(sys.argv[2]).read_text()
tokenize_batch(tokenizer, [text[:1000]], context_size=128, bos_id=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
got = tokenize_batch(tokenizer, [text], context_size=128, bos_id=0)
print(int(got.n_tokens[0]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_what_a_long_document_takes(tmp_path: Path) -> None:
    """Some 250 MB for the current pieces and 40 bytes a token. The whole text took 780 bytes a
    token."""
    size = 50_000_000 if LONG else 8_000_000
    words = " river bridge stone water tower music paint planet"
    (tmp_path / "huge.txt").write_text(words * (size // len(words)))
    tiny_model(tmp_path / "model")
    told = [sys.executable, "-c", _MEASURE, str(tmp_path / "model"), str(tmp_path / "huge.txt")]
    ran = subprocess.run(told, capture_output=True, text=True, check=True)
    n, peak = map(int, ran.stdout.split())
    assert n >= size // len(words) * 8
    assert peak < 250e6 + 40 * n
