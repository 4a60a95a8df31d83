"""Which contexts the load check looks at: from everywhere, the same ones every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.load_check.sample import SampleTokens
from ingest.load_check.spread import Spread, keys

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=300)


def key(row: int) -> int:
    """`keys` of one context, bit by bit, in Python's integers."""
    key, mask = 0, (1 << 64) - 1
    for level in range(32):
        x = ((row >> (level + 1)) * 32 + level) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        key = key << 1 | ((row >> level & 1) ^ ((x ^ (x >> 31)) & 1))
    return key


def chosen(lengths: list[int], tokens: int) -> list[int]:
    """The contexts, one after another in the order of their keys."""
    rows: list[int] = []
    total = 0
    for row in sorted(range(len(lengths)), key=key):
        if total >= tokens:
            break
        rows.append(row)
        total += lengths[row]
    return sorted(rows)


@given(lengths=LENGTHS, tokens=st.integers(1, 3_000), batch=st.integers(1, 300))
def test_any_batches_give_the_same_contexts(lengths: list[int], tokens: int, batch: int) -> None:
    spread = Spread(tokens)
    for first in range(0, len(lengths), batch):
        spread.add(np.array(lengths[first : first + batch], np.int32))
    assert spread.rows.tolist() == chosen(lengths, tokens)


@given(lengths=LENGTHS, tokens=st.integers(1, 3_000), split=st.integers(1, 299))
def test_a_sample_is_of_whole_contexts(lengths: list[int], tokens: int, split: int) -> None:
    starts = np.cumsum([0, *lengths])
    ids = np.arange(starts[-1], dtype=np.uint32)
    corpus = (np.arange(len(lengths)) >= split).astype(np.int64)
    sample = SampleTokens(ids, starts, 0, True, ("0", "1"), corpus).spread(tokens)
    rows = chosen(lengths, tokens) if starts[-1] > tokens else range(len(lengths))
    assert sample.from_corpus.tolist() == [int(row >= split) for row in rows]
    contexts = np.split(sample.tokens, sample.starts[1:-1])
    wanted = [ids[starts[row] : starts[row + 1]] for row in rows]
    assert [c.tolist() for c in contexts] == [c.tolist() for c in wanted]
    assert (sample.bos, sample.skip_first, sample.corpora) == (0, True, ("0", "1"))


def test_several_corpora_are_one_sample() -> None:
    one = SampleTokens(np.arange(9, dtype=np.uint16), np.array([0, 4, 6]), 0, True, ("3",))
    two = SampleTokens(np.arange(50, 57, dtype=np.uint16), np.array([0, 7]), 0, True, ("5",))
    both = SampleTokens.of_all([one, two])
    assert both.tokens.tolist() == [*range(6), *range(50, 57)]
    assert both.starts.tolist() == [0, 4, 6, 13]
    assert both.corpora == ("3", "5")
    assert both.from_corpus.tolist() == [0, 0, 1]
    assert SampleTokens.of_all([one]) is one


def test_the_choice_never_changes() -> None:
    """Sinks depend on it, so another choice is another database."""
    spread = Spread(64)
    spread.add(np.full(1_000, 8))
    assert spread.rows.tolist() == [3, 147, 304, 482, 637, 665, 887, 977]


@pytest.mark.parametrize("block", [2, 8, 64, 512])
def test_every_stretch_has_its_share(block: int) -> None:
    order = np.argsort(keys(np.arange(4_096)))
    first = order[: 4_096 // block] // block
    assert np.sort(first).tolist() == list(range(4_096 // block))


@pytest.mark.parametrize("period", [2, 3, 5, 8, 34, 55, 64, 144])
def test_no_period_of_a_corpus_is_one_of_the_sample(period: int) -> None:
    """Of every second half of a period, as of documents whose ends are other than their beginnings,
    the sample has about half."""
    spread = Spread(2_000)
    spread.add(np.full(40_000, 10))
    share = np.mean(spread.rows % period >= period / 2)
    expected = np.mean(np.arange(40_000) % period >= period / 2)
    assert abs(share - expected) < 0.12  # 3.4 standard deviations of a random sample of 200
