"""Pages of the top contexts, with no document and no text twice if asked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError
from tests.make_store import MadeSae, World, make_store
from tests.oracle import Oracle, Row
from tests.queries.test_against_oracle import everywhere, few, name_of, opened, some_features
from tests.queries.worlds import POOL, VOCABULARY, made_world

SQL = (
    'FROM top_contexts(?, k := ?, window_size := ?, "offset" := ?, per_document := ?, '
    '"distinct" := ?)'
)


def repeating_worlds() -> st.SearchStrategy[World]:
    """Worlds of two words, so that many contexts are equal."""
    return st.integers(0, POOL - 1).map(_repeating)


@cache
def _repeating(seed: int) -> World:
    world = made_world(seed, 2)
    first = int(world.bos is not None)
    documents = [
        [context[:first] + [1 + token % 2 for token in context[first:]] for context in document]
        for document in world.documents
    ]
    return replace(world, documents=documents)


def pages(oracle: Oracle, rows: list[Row], per_document: bool, distinct: bool) -> list[Row]:
    """The rows that are shown at all, one after the other as a reader would go through them."""
    documents, texts = set(), set()
    kept: list[Row] = []
    for row in rows:
        text = tuple(oracle.contexts[row["context_id"]])
        if (per_document and row["document_id"] in documents) or (distinct and text in texts):
            continue
        documents.add(row["document_id"])
        texts.add(text)
        kept.append({**row, "rank": len(kept) + 1})
    return kept


@given(repeating_worlds(), st.data())
@few
def test_pages(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            name = name_of(world, sae, feature)
            k = data.draw(st.sampled_from([1, 3, 50, 200]))
            window = data.draw(st.sampled_from([1, 16, 20]))
            offset = data.draw(st.sampled_from([0, 1, 4, 49, 2**62]))
            flags = data.draw(st.tuples(st.booleans(), st.booleans()))
            answer = db.top_contexts(
                name, k=k, window=window, offset=offset, per_document=flags[0], distinct=flags[1]
            )
            rows = everywhere(db, client, answer, SQL, [name, k, window, offset, *flags])
            every = oracle.top_contexts(sae, feature, 10**6, window)
            assert rows == pages(oracle, every, *flags)[offset : offset + k]
            if every:
                assert answer.max_activation == every[0]["activation"]


@given(repeating_worlds(), st.data())
@few
def test_pages_of_what_a_condition_leaves(world: World, data: st.DataObject) -> None:
    flags = data.draw(st.tuples(st.booleans(), st.booleans()))
    with opened(world) as (db, _, oracle):
        for sae, feature in some_features(world, data):
            got = db.top_contexts(
                name_of(world, sae, feature), k=2, where="topic = 'art'", max_activation=2.0,
                offset=1, per_document=flags[0], distinct=flags[1],
            )  # fmt: skip
            every = oracle.top_contexts(
                sae, feature, 10**6, 16, keep=lambda m: m["topic"] == "art", high=2.0
            )
            assert got.table.to_pylist() == pages(oracle, every, *flags)[1:3]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    """One document 120 times among 40 others, of two contexts each, and a feature it owns."""
    rng = np.random.default_rng(5)
    copied = [[0, 1, 2, 3], [0, 3, 2]]
    documents = []
    for i in range(160):
        other = [[0, *rng.integers(1, 9, 3).tolist()], [0, *rng.integers(1, 9, 2).tolist()]]
        documents.append(other if i % 4 == 0 else copied)
    dense = []
    for document in documents:
        for context in document:
            high = 9.0 if document is copied else float(rng.random()) + 0.5
            dense.append(np.full((len(context), 1), high, np.float32) * len(context))
    directions = np.ones((1, 4), np.float32)
    world = World(
        documents=documents,
        metadata={"topic": ["art"] * len(documents)},
        vocabulary=VOCABULARY,
        saes=[MadeSae("s", dense, directions, directions)],
        context_size=4,
    )
    path = tmp_path_factory.mktemp("copies") / "copies.fdb"
    make_store(path, world)
    return path, Oracle(world)


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
def test_copies_beyond_the_stored_examples(
    copies: tuple[Path, Oracle], flags: tuple[bool, bool]
) -> None:
    path, oracle = copies
    expected = pages(oracle, oracle.top_contexts("s", 0, 10**6, 16), *flags)
    with featuredb.open(path) as db:
        for k, offset in ((20, 0), (20, 15), (7, 30), (500, 0)):
            got = db.top_contexts(
                0, k=k, offset=offset, per_document=flags[0], distinct=flags[1]
            ).table.to_pylist()
            assert got == expected[offset : offset + k]
            sql = db.sql(SQL, [0, k, 16, offset, *flags]).to_arrow_table().to_pylist()
            assert sql == got


def test_pages_follow_one_another(copies: tuple[Path, Oracle]) -> None:
    path, _ = copies
    with featuredb.open(path) as db:
        whole = db.top_contexts(0, k=90).table.to_pylist()
        pieces = [db.top_contexts(0, k=30, offset=n).table.to_pylist() for n in (0, 30, 60)]
        assert [row for piece in pieces for row in piece] == whole


@pytest.mark.parametrize("offset", [-1, 1.5, "2", True, None, 2**63])
def test_a_bad_offset(copies: tuple[Path, Oracle], offset: object) -> None:
    with featuredb.open(copies[0]) as db, pytest.raises(QueryError, match="offset must be a whole"):
        db.top_contexts(0, offset=offset)  # type: ignore[call-overload]


@pytest.mark.parametrize("offset", ["-1", "1.5", str(2**63)])
def test_a_bad_offset_in_sql(copies: tuple[Path, Oracle], offset: str) -> None:
    with (
        featuredb.open(copies[0]) as db,
        pytest.raises(Exception, match="offset must be a whole"),
    ):
        db.sql(f'FROM top_contexts(0, "offset" := {offset})').fetchall()


def test_copies_do_not_fill_the_sample(copies: tuple[Path, Oracle]) -> None:
    path, oracle = copies
    with featuredb.open(path) as db:
        rows = db.sql("SELECT kind, context_id, activation FROM examples").fetchall()
    every = oracle.top_contexts("s", 0, 10**6, 16)
    rank = {row["context_id"]: row["rank"] - 1 for row in every}
    # The first 50 are the answer without options, copies or not.
    assert [c for kind, c, _ in rows if kind == 0] == [row["context_id"] for row in every[:50]]
    sampled = [(kind, c) for kind, c, _ in rows if kind]
    texts = [tuple(oracle.contexts[c]) for _, c in sampled]
    assert len(set(texts)) == len(texts)
    for kind, context in sampled:
        assert kind == 5 - rank[context] * 5 // len(every)
        same = [c for c in rank if oracle.contexts[c] == oracle.contexts[context]]
        assert rank[context] == min(rank[c] for c in same)
    # Every fifth has as many as it has texts of its own, up to four.
    firsts: dict[tuple[int, ...], int] = {}
    for row in every:
        firsts.setdefault(tuple(oracle.contexts[row["context_id"]]), row["rank"] - 1)
    for kind in range(1, 6):
        own = [r for r in firsts.values() if 5 - r * 5 // len(every) == kind]
        assert sum(k == kind for k, _ in sampled) == min(4, len(own))
