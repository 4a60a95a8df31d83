"""A whole document, by Python and by SQL, against the arrays that the store was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError, UnknownContextError
from tests.make_store import MadeSae, World, make_store, stored
from tests.oracle import Row
from tests.queries.test_against_oracle import few, name_of, opened
from tests.queries.together import uneven_worlds

COLUMNS = (
    "document_id",
    "context_id",
    "token_index",
    "token_id",
    "token",
    "char_start",
    "char_end",
)


def expected(world: World, document: int, sae: Any, feature: int) -> list[Row]:
    dense = stored(world, sae)
    first = int(world.bos is not None)
    before = sum(map(len, world.documents[:document]))
    rows: list[Row] = []
    at = 0
    for number, ids in enumerate(world.documents[document]):
        context = before + number
        recorded = set(world.recorded(sae, context))
        for index in range(first, len(ids)):
            text = world.vocabulary[ids[index]]
            place = document, context, index, ids[index], text, at, at + len(text)
            value = float(dense[context][index, feature]) if index in recorded else None
            rows.append(
                dict(zip(COLUMNS, place, strict=True)) | {"role": None, "activation": value}
            )
            at += len(text)
    return rows


@given(uneven_worlds(), st.data())
@settings(few, max_examples=6)
def test_documents(world: World, data: st.DataObject) -> None:
    sae = data.draw(st.sampled_from(world.saes))
    feature = data.draw(st.integers(0, len(sae.decoder) - 1))
    context = 0
    with opened(world) as (db, client, _oracle):
        for document, contexts in enumerate(world.documents):
            wanted = expected(world, document, sae, feature)
            answer = db.document(document, name_of(world, sae.name, feature))
            named = {"sae": sae.name, "feature_id": feature}
            assert answer.arrow().to_pylist() == [named | row for row in wanted]
            text = "".join(row["token"] for row in wanted)
            assert (answer.text, answer.document_id) == (text, document)
            assert answer.metadata == {
                "source": "made",
                "topic": world.metadata["topic"][document],
                "rank": world.metadata["rank"][document],
            }
            assert all(text[r.char_start : r.char_end] == r.token for r in answer)
            if contexts:
                assert db.document(context_id=context + len(contexts) - 1).document_id == document
            context += len(contexts)
            for asked in (db.sql, client.execute) if document % 5 == 0 else ():
                rows = asked("FROM document(?)", [document]).fetchall()
                assert rows == [(*(row[name] for name in COLUMNS), None) for row in wanted]
        plain = db.document(0)
        assert set(plain.arrow().column("activation").to_pylist()) <= {None}
        assert plain.feature is None


def test_what_is_shown_and_what_cannot_be_asked(made_document: Path) -> None:
    with featuredb.open(made_document) as db:
        shown = str(db.document(1, 0)).splitlines()
        assert shown[0] == "document 1 · 3 tokens · s/0 · fires on 1"
        assert "a title" in shown[2]
        assert shown[-1] == " a «b» a"
        for options, message in (
            ({}, "give a document's id, or context_id"),
            ({"document_id": 1, "context_id": 1}, "give a document's id, or context_id"),
            ({"document_id": 2}, "there is no document 2: this database has documents 0 to 1"),
            ({"document_id": "1"}, "there is no document 1: this database has documents 0 to 1"),
        ):
            with pytest.raises(QueryError) as refused:
                db.document(**options)
            assert str(refused.value) == message
        with pytest.raises(UnknownContextError, match="there is no context 9"):
            db.document(context_id=9)
        with pytest.raises(Exception, match="there is no document 7: this database has documents"):
            db.sql("FROM document(7)").fetchall()


@pytest.fixture(scope="module")
def made_document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("document") / "s.fdb"
    rows = np.eye(1, 4, dtype=np.float32)
    dense = [np.zeros((2, 1), np.float32), np.array([[0], [0], [2], [0]], np.float32)]
    metadata = {"title": [None, "a title"]}
    sae = MadeSae("s", dense, rows, rows)
    make_store(path, World([[[0, 1]], [[0, 1, 2, 1]]], metadata, ["<s>", " a", " b"], [sae]))
    return path
