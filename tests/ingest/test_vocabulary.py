"""The bytes of each token id, in every encoding of bytes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from featuredb.store import schemas
from ingest.tokens.vocabulary import known_ids, vocabulary


@cache
def byte_level(split: bool = False) -> Any:
    """GPT-2's arrangement. With `split`, Llama 3's, where the byte level is inside a sequence."""
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_next"), level])
        if split
        else level
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat naïve café 🙂"] * 3, trainer)
    backend.add_tokens([AddedToken("Ünï added", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@cache
def sentence_piece() -> Any:
    """A unigram model with bytes for what it does not know."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [("▁the", -1.0), ("▁", -2.0), ("cat", -2.0), ("▁c", -2.5), ("a", -3.0), ("t", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def row(table: pa.Table, tokenizer: Any, token: str) -> dict[str, Any]:
    found = table.slice(tokenizer.convert_tokens_to_ids(token), 1).to_pylist()
    return dict(found[0])


def joined(table: pa.Table, ids: list[int]) -> bytes:
    return b"".join(table.column("bytes")[i].as_py() for i in ids)


@pytest.mark.parametrize("split", [False, True])
@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_byte_level_bytes_join_to_the_text(split: bool, text: str) -> None:
    tokenizer = byte_level(split)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert joined(table_of(split), ids) == text.encode()


@cache
def table_of(split: bool) -> pa.Table:
    return vocabulary(byte_level(split))


def test_byte_level_rows() -> None:
    tokenizer = byte_level()
    table = vocabulary(tokenizer)
    assert table.schema == schemas.VOCABULARY
    assert table.column("token_id").to_pylist() == list(range(len(tokenizer)))
    assert row(table, tokenizer, "Ġthe")["text"] == " the"
    assert row(table, tokenizer, "Ã")["bytes"] == b"\xc3"
    assert row(table, tokenizer, "Ã")["text"] == "<0xC3>"
    end = row(table, tokenizer, "<|endoftext|>")
    assert (end["bytes"], end["special"]) == (b"<|endoftext|>", True)
    added = row(table, tokenizer, "Ünï added")
    assert (added["bytes"].decode(), added["special"]) == ("Ünï added", False)


def test_ids_that_stand_for_nothing() -> None:
    tokenizer = byte_level()
    count = len(tokenizer)
    table = vocabulary(tokenizer, count + 2)
    assert table.num_rows == count + 2
    assert table.slice(count).to_pylist() == [
        {"token_id": i, "bytes": b"", "text": f"<unused {i}>", "special": False}
        for i in (count, count + 1)
    ]
    assert vocabulary(tokenizer, 5).num_rows == 5
    assert vocabulary(tokenizer, 0).num_rows == 0


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁")))
def test_sentence_piece_bytes_join_to_the_text(text: str) -> None:
    tokenizer = sentence_piece()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert joined(sentence_piece_table(), ids) == text.encode()


@cache
def sentence_piece_table() -> pa.Table:
    return vocabulary(sentence_piece())


def test_sentence_piece_rows() -> None:
    tokenizer, table = sentence_piece(), sentence_piece_table()
    assert row(table, tokenizer, "▁the")["text"] == " the"
    assert row(table, tokenizer, "<0xAB>")["bytes"] == b"\xab"
    assert row(table, tokenizer, "</s>")["special"]


def test_metaspace_rows() -> None:
    backend = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    table = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert table.column("text").to_pylist() == [" ", "a", " a"]


def test_word_piece_rows() -> None:
    words = {"[UNK]": 0, "cat": 1, "##s": 2, "##": 3, "é": 5}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]"])
    table = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert table.column("text").to_pylist() == ["[UNK]", " cat", "s", " ##", "<unused 4>", " é"]
    assert table.column("bytes")[4].as_py() == b""
    assert table.column("special").to_pylist() == [True] + [False] * 5


def test_word_end_rows() -> None:
    model = models.BPE({"ca": 0, "t</w>": 1}, [], end_of_word_suffix="</w>")
    backend = Tokenizer(model)
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    table = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert table.column("text").to_pylist() == ["ca", "t "]


def test_whole_words_are_their_own_text() -> None:
    backend = Tokenizer(models.WordLevel({"the": 0, "cat": 1}, unk_token="the"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    table = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert table.column("text").to_pylist() == ["the", "cat"]


def test_ids_without_a_tokenizer_are_shown_as_numbers() -> None:
    table = vocabulary(None, 3)
    assert table.schema == schemas.VOCABULARY
    assert table.column("text").to_pylist() == ["<0>", "<1>", "<2>"]
    assert set(table.column("bytes").to_pylist()) == {b""}
    assert known_ids(None, 3).all()


def test_padding_rows_are_no_tokens() -> None:
    tokenizer = byte_level()
    count = len(tokenizer)
    assert known_ids(tokenizer, count + 2).tolist() == [True] * count + [False] * 2
    assert known_ids(tokenizer, 5).tolist() == [True] * 5


def test_what_looks_like_bytes_and_spaces_but_is_text() -> None:
    tokenizer = byte_level()
    added = ["<0x41>", "<0xE6>", "Ġzzz", "a▁b"]
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(
        tokenizer.backend_tokenizer.to_str()
    ))  # fmt: skip
    fast.add_tokens(added)
    text = " the" + "".join(added) + "▁Ġ the"
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert joined(vocabulary(fast), ids) == text.encode()


def test_byte_tokens_are_bytes_only_where_the_model_falls_back_to_them() -> None:
    words = {"▁": 0, "<0x41>": 1, "<unk>": 2}
    for falls_back, expected in ((True, b"A"), (False, b"<0x41>")):
        backend = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=falls_back))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        table = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
        assert table.column("bytes").to_pylist()[:2] == [b" ", expected]
