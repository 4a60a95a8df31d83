"""Contexts are windows over whole documents. The oracle is a simple loop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus
from ingest.tokens.contexts import TokenizedBatch
from ingest.tokens.tokenize import cut_tokens, iter_contexts, tokenize_batch, tokenize_chats

BOS = 7
TEXTS = ["the cat sat on the mat, and the dog on the log", "", "naïve 🙂🙂 猫 café", "the"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
)


@cache
def byte_level(template: str = CHATML) -> Any:
    """A small byte-level BPE tokenizer with the marks of a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)


class Slow(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer in Python, one token a character."""

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(256)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token) % 256

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def windows(ids: list[int], size: int, bos: int | None, stride: int | None) -> list[list[int]]:
    """The contexts of one document, naively."""
    room = size - (bos is not None)
    while bos is not None and ids[:1] == [bos]:
        ids = ids[1:]
    contexts, start = [], 0
    while ids:
        contexts.append(([] if bos is None else [bos]) + ids[start : start + room])
        if start + room >= len(ids):
            break
        start += stride or room
    return contexts


def contexts_of(batch: TokenizedBatch) -> list[list[list[int]]]:
    """Per document, its contexts in order."""
    documents: list[list[list[int]]] = [[] for _ in batch.n_tokens]
    pieces = np.split(batch.token_ids, np.cumsum(batch.context_lengths)[:-1])
    for context, document, index in zip(
        pieces, batch.context_document, batch.context_index, strict=False
    ):
        assert index == len(documents[document])
        documents[document].append(context.tolist())
    return documents


OPTIONS = st.tuples(
    st.integers(2, 9), st.sampled_from([None, BOS]), st.none() | st.integers(1, 8)
).filter(lambda o: o[2] is None or o[2] <= o[0] - (o[1] is not None))


@settings(deadline=None)
@given(documents=st.lists(st.lists(st.integers(8, 99), max_size=40), max_size=6), options=OPTIONS)
def test_windows_are_those_of_the_loop(
    documents: list[list[int]], options: tuple[int, int | None, int | None]
) -> None:
    size, bos, stride = options
    array = pa.array(documents, pa.list_(pa.int32()))
    batch = cut_tokens(array, context_size=size, bos_id=bos, stride=stride)
    contexts = contexts_of(batch)
    assert contexts == [windows(ids, size, bos, stride) for ids in documents]
    assert batch.n_tokens.tolist() == [len(ids) for ids in documents]
    assert batch.char_start.tolist() == [-1] * len(batch.context_lengths)
    if stride is None:
        joined = [[i for c in doc for i in c[bos is not None :]] for doc in contexts]
        assert joined == documents


@settings(deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8")), max_size=5), options=OPTIONS)
def test_texts_are_tokenized_whole(
    texts: list[str], options: tuple[int, int | None, int | None]
) -> None:
    size, bos, stride = options
    tokenizer = byte_level()
    batch = tokenize_batch(tokenizer, texts, context_size=size, bos_id=bos, stride=stride)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert contexts_of(batch) == [windows(ids, size, bos, stride) for ids in whole]


@settings(deadline=None)
@given(texts=st.lists(st.text("ab é猫🙂\n "), max_size=5), size=st.integers(2, 9))
def test_character_spans_cover_the_text(texts: list[str], size: int) -> None:
    tokenizer = byte_level()
    batch = tokenize_batch(tokenizer, texts, context_size=size, bos_id=None)
    contexts = [c for document in contexts_of(batch) for c in document]
    spans = list(zip(batch.char_start.tolist(), batch.char_end.tolist(), strict=True))
    for context, document, (start, end) in zip(
        contexts, batch.context_document, spans, strict=True
    ):
        # Split characters decode to U+FFFD at an edge; all others are inside the span.
        decoded = tokenizer.decode(context, clean_up_tokenization_spaces=False)
        assert decoded.strip("\ufffd").strip() in texts[document][start:end]
    for (one, (_, end)), (other, (start, _)) in pairwise(
        zip(batch.context_document.tolist(), spans, strict=True)
    ):
        assert start == 0 if one != other else start in (end, end - 1)


def test_dtypes_and_an_empty_batch() -> None:
    batch = tokenize_batch(byte_level(), [], context_size=4, bos_id=BOS)
    assert batch.token_ids.dtype == np.uint32
    assert batch.context_lengths.dtype == batch.context_index.dtype == np.int32
    assert batch.context_document.dtype == batch.char_start.dtype == np.int64
    assert batch.char_end.dtype == batch.n_tokens.dtype == np.int64
    assert len(batch.token_ids) == len(batch.context_lengths) == len(batch.n_tokens) == 0
    empty = tokenize_batch(byte_level(), ["", ""], context_size=4, bos_id=BOS)
    assert (len(empty.context_lengths), empty.n_tokens.tolist()) == (0, [0, 0])


def test_truncation_and_padding_of_the_tokenizer_do_not_apply() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    )
    expected = tokenize_batch(tokenizer, TEXTS, context_size=5, bos_id=None)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=100)
    batch = tokenize_batch(tokenizer, TEXTS, context_size=5, bos_id=None)
    assert batch.token_ids.tolist() == expected.token_ids.tolist()


def test_groups_of_texts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tokenize_batch(byte_level(), TEXTS, context_size=5, bos_id=BOS)
    monkeypatch.setattr("ingest.tokens.encoding._GROUP_CHARACTERS", 5)
    other = tokenize_batch(byte_level(), TEXTS, context_size=5, bos_id=BOS)
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert one.char_end.tolist() == other.char_end.tolist()


def test_special_tokens_are_never_added() -> None:
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    batch = tokenize_batch(tokenizer, ["the cat"], context_size=50, bos_id=None)
    assert not {0, 1}.intersection(batch.token_ids.tolist())


def test_long_documents_and_slow_tokenizers_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(model_max_length=5)
    with caplog.at_level(logging.WARNING):
        batch = tokenize_batch(slow, ["a long text", ""], context_size=4, bos_id=0)
        tokenize_batch(byte_level(), ["the " * 9999], context_size=64, bos_id=None)
    assert caplog.text == ""
    assert contexts_of(batch) == [windows([ord(c) for c in "a long text"], 4, 0, None), []]
    assert set(batch.char_start.tolist() + batch.char_end.tolist()) == {-1}


@pytest.mark.parametrize(
    ("size", "bos", "stride"), [(1, BOS, None), (0, None, None), (4, BOS, 4), (4, None, 0)]
)
def test_options_without_room(size: int, bos: int | None, stride: int | None) -> None:
    with pytest.raises(ValueError, match=r"context_size|stride"):
        tokenize_batch(byte_level(), ["a"], context_size=size, bos_id=bos, stride=stride)


def test_token_ids_the_model_does_not_know() -> None:
    with pytest.raises(CorpusError, match=r"document 1 has token id 9, .* below 9"):
        cut_tokens(pa.array([[8], [9]]), context_size=4, bos_id=None, vocab_size=9)
    with pytest.raises(CorpusError, match="holds -1"):
        cut_tokens(pa.array([[-1]]), context_size=4, bos_id=None)
    with pytest.raises(CorpusError, match="null"):
        cut_tokens(pa.array([[1, None]]), context_size=4, bos_id=None)


def test_a_bos_in_the_tokens_is_not_doubled() -> None:
    batch = cut_tokens(pa.array([[BOS, 1, 2], [1, BOS]]), context_size=3, bos_id=BOS)
    assert contexts_of(batch) == [[[BOS, 1, 2]], [[BOS, 1, BOS]]]
    assert batch.n_tokens.tolist() == [2, 2]
    only = cut_tokens(pa.array([[BOS], [BOS, 3]]).slice(1), context_size=3, bos_id=BOS)
    assert contexts_of(only) == [[[BOS, 3]]]


CHAT = [
    {"role": "system", "content": "  the dog "},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "the cat sat 🙂"},
    {"role": "critic", "content": ""},
]


def by_role(batch: TokenizedBatch, tokenizer: Any) -> list[tuple[str, str]]:
    """The text of each run of tokens of one role."""
    assert batch.roles is not None
    runs: list[tuple[str, list[int]]] = []
    for token, code in zip(batch.token_ids.tolist(), batch.roles.tolist(), strict=True):
        role = batch.role_names[code]
        if not runs or runs[-1][0] != role:
            runs.append((role, []))
        runs[-1][1].append(token)
    return [(role, tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for role, ids in runs]


def test_each_token_of_a_chat_has_the_role_of_its_message() -> None:
    tokenizer = byte_level()
    batch = tokenize_chats(tokenizer, [CHAT, []], context_size=500, bos_id=None)
    assert by_role(batch, tokenizer) == [
        ("template", "<|im_start|>system\n"),
        ("system", "the dog"),
        ("template", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "user"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "the cat sat 🙂"),
        ("template", "<|im_end|>\n<|im_start|>critic\n<|im_end|>\n"),
    ]
    assert batch.texts is not None
    assert batch.texts[0] == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert (batch.texts[1], batch.n_tokens[1]) == ("", 0)
    assert batch.role_names == ("template", "system", "user", "assistant", "tool", "critic")


def test_a_template_that_rewrites_a_message_and_one_that_refuses_marks() -> None:
    rewriting = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'].split('|')[-1] }}<|im_end|>\n{% endfor %}"
    )
    tokenizer = byte_level(rewriting)
    chat = [{"role": "user", "content": "thought|the cat"}, {"role": "tool", "content": "mat"}]
    batch = tokenize_chats(tokenizer, [chat], context_size=500, bos_id=None)
    assert by_role(batch, tokenizer)[1] == ("user", "the cat")
    assert by_role(batch, tokenizer)[3] == ("tool", "mat")

    refusing = (
        "{% for m in messages %}{% if '\ue000' in m['content'] %}{{ raise_exception('no') }}"
        "{% endif %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    tokenizer = byte_level(refusing)
    batch = tokenize_chats(tokenizer, [chat], context_size=500, bos_id=None)
    assert by_role(batch, tokenizer)[1] == ("user", "thought|the cat")


def test_the_bos_of_a_template_is_not_doubled_and_windows_keep_their_roles() -> None:
    tokenizer = byte_level()
    chat = [{"role": "user", "content": "the cat sat on the mat"}]
    whole = tokenize_chats(tokenizer, [chat], context_size=500, bos_id=0)
    assert whole.token_ids.tolist()[:1] == [0]
    assert whole.token_ids.tolist().count(0) == 1
    cut = tokenize_chats(tokenizer, [chat], context_size=4, bos_id=0)
    assert cut.roles is not None
    assert whole.roles is not None
    starts = np.cumsum(cut.context_lengths) - cut.context_lengths
    assert cut.role_names[0] == "template"
    assert set(cut.roles[starts]) == {0}
    assert np.delete(cut.roles, starts).tolist() == whole.roles[1:].tolist()
    assert cut.n_tokens.tolist() == [len(whole.token_ids) - 1]


def test_chats_that_cannot_be_tokenized() -> None:
    options: dict[str, Any] = {"context_size": 9, "bos_id": None}
    with pytest.raises(CorpusError, match="refuses document 0: no"):
        tokenize_chats(byte_level("{{ raise_exception('no') }}"), [CHAT], **options)
    plain = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    with pytest.raises(CorpusError, match="chat template refuses"):
        tokenize_chats(plain, [CHAT], **options)
    with pytest.raises(CorpusError, match="fast tokenizer"):
        tokenize_chats(Slow(chat_template=CHATML), [CHAT], **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(
    ("documents", "options", "tokenize"),
    [
        ([{"text": text} for text in TEXTS * 5], {}, tokenize_batch),
        ([{"chat": CHAT[:n]} for n in (1, 0, 3) * 3], {"messages_column": "chat"}, tokenize_chats),
    ],
)
def test_the_corpus_comes_in_order_whatever_the_workers(
    workers: int, documents: Any, options: dict[str, Any], tokenize: Callable[..., TokenizedBatch]
) -> None:
    corpus = open_corpus(documents, **options)
    tokenizer = byte_level()
    pairs = iter_contexts(
        corpus, tokenizer, context_size=5, bos_id=BOS, batch_documents=3, workers=workers
    )
    seen: list[Any] = []
    contexts: list[Any] = []
    for batch, tokenized in pairs:
        assert batch.num_rows <= 3
        seen += batch.column(0).to_pylist()
        contexts += contexts_of(tokenized)
    given = [next(iter(row.values())) for row in documents]
    if "messages_column" in options:
        seen = [[json.loads(message) for message in chat] for chat in seen]
    assert seen == given
    assert contexts == contexts_of(tokenize(tokenizer, seen, context_size=5, bos_id=BOS))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_document_and_a_reader_may_stop_early(workers: int) -> None:
    corpus = open_corpus([{"ids": [i]} for i in range(50)], tokens_column="ids")
    pairs = iter_contexts(
        corpus,
        None,
        context_size=4,
        bos_id=None,
        vocab_size=40,
        batch_documents=8,
        workers=workers,
    )
    assert contexts_of(next(pairs)[1]) == [[[i]] for i in range(8)]
    with pytest.raises(CorpusError, match="Python, row 40 has token id 40"):
        list(pairs)
    pairs = iter_contexts(corpus, None, context_size=4, bos_id=None, workers=workers)
    next(pairs)
    pairs.close()  # type: ignore[attr-defined]
