"""Conditions of ``where``: on roles, with paging, in find, and where they are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featuredb
from featuredb.database import Database
from featuredb.errors import SQLError
from tests.archives.packed import HERE, unpack
from tests.make_store import MadeSae, World, make_store


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = unpack(HERE / "format-3" / "chats.tar.gz", tmp_path_factory.mktemp("chats") / "c.fdb")
    with featuredb.open(path) as db:
        yield db


def test_top_contexts_on_the_tokens_of_a_role(chats: Database) -> None:
    """Against loops over all activations of all tokens."""
    roles = {
        (context, token): role
        for context, token, role in chats.sql(
            "SELECT context_id, token_index, role FROM tokens"
        ).fetchall()
    }
    asked = 0
    for feature in ("a/10", "b/4"):
        for role in ("user", "assistant"):
            best: dict[int, tuple[float, int]] = {}
            for row in chats.activations(feature):
                if roles[row.context_id, row.token_index] == role:
                    other = best.get(row.context_id, (-np.inf, 0))
                    if row.activation > other[0]:
                        best[row.context_id] = (row.activation, row.token_index)
            expected = sorted((-value, c, token) for c, (value, token) in best.items())
            answer = chats.top_contexts(feature, k=1000, where=f"role = '{role}'")
            found = [(-row.activation, row.context_id, row.token_index) for row in answer]
            assert found == expected
            asked += len(found)
            sql = 'FROM top_contexts(?, k := 1000, "where" := ?)'
            same = chats.sql(sql, [feature, f"role = '{role}'"]).to_arrow_table()
            assert same.to_pylist() == answer.table.to_pylist()
            for options in ({"per_document": True}, {"distinct": True}):
                _first_of_each(chats, feature, f"role = '{role}'", **options)
    assert asked


def _first_of_each(db: Database, feature: str, where: str, **options: bool) -> None:
    answer: Any = db.top_contexts(feature, 1000, 2, where, **options)
    every: Any = db.top_contexts(feature, 1000, 1000, where)
    seen, expected = set(), []
    for row in every:
        whole = (row.window_start, *row.tokens) if "distinct" in options else row.document_id
        if whole not in seen:
            seen.add(whole)
            expected.append(row.context_id)
    if "per_document" in options:
        assert [row.context_id for row in answer] == expected
    named = ", ".join(f'"{name}" := {value}' for name, value in options.items())
    sql = f'FROM top_contexts(?, k := 1000, window_size := 2, "where" := ?, {named})'
    same = db.sql(sql, [feature, where]).to_arrow_table()
    assert same.to_pylist() == answer.table.to_pylist()


def test_find_looks_at_the_chosen_tokens_only(chats: Database) -> None:
    found = chats.find(all=["a/10"], where="role = 'user'", k=1000)
    places = chats.sql(
        "SELECT context_id, token_index FROM feature_activations('a/10') "
        "JOIN tokens USING (context_id, token_index) WHERE role = 'user'"
    ).fetchall()
    assert sorted((row.context_id, row.token_index) for row in found) == sorted(places)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("n_tokens < 5", "n_tokens is a column of several tables: write contexts.n_tokens or docu"),
        ("role = 'user' AND n_tokens < 5", "n_tokens is a column of several tables"),
        (
            "role = assistant",
            r"no column assistant in documents, .* Text wants single quotes: 'assistant'",
        ),
        ("rol = 'user'", "no column rol in documents, contexts or tokens"),
        ("role = ", "syntax error"),
    ],
    ids=["ambiguous", "ambiguous-of-tokens", "unquoted", "unknown", "syntax"],
)
def test_wrong_conditions_say_what_to_write(chats: Database, where: str, message: str) -> None:
    with pytest.raises(SQLError, match=message):
        chats.top_contexts("a/10", where=where)
    with pytest.raises(SQLError, match=message):
        chats.find(all=["a/10"], where=where)


def test_a_column_of_the_corpus_is_not_taken_for_the_token(tmp_path: Path) -> None:
    dense, rows = np.array([[0], [1], [2]], np.float32), np.ones((1, 2), np.float32)
    world = World(
        [[[0, 1, 2]]], {"Token": ["x"]}, ["<s>", " a", " b"], [MadeSae("s", [dense], rows, rows)]
    )
    make_store(tmp_path / "a.fdb", world)
    with featuredb.open(tmp_path / "a.fdb") as db:
        with pytest.raises(SQLError, match=r"write documents\.token or tokens\.token"):
            db.top_contexts(0, where="token = ' a'")
        assert [row.activation for row in db.top_contexts(0, where="tokens.token = ' a'")] == [1]
        assert [row.activation for row in db.top_contexts(0, where="documents.token = 'x'")] == [2]
