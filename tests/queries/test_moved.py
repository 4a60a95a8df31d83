"""A moved database, in a plain client: its own files, or one line. Never another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

import featuredb
from featuredb.store.layout import Layout
from tests.make_store import World, make_store
from tests.queries.test_questions import small_world

QUESTIONS = (
    "SELECT count(*) FROM documents",
    "SELECT count(*) FROM contexts",
    "SELECT count(*) FROM activations",
    "FROM features ORDER BY feature_id",
    "FROM top_contexts(1)",
    "FROM near(1)",
    "FROM fires_in(0)",
    "FROM search('bank')",
    "FROM tokens ORDER BY ALL",
    "FROM examples ORDER BY ALL",
    "FROM sinks ORDER BY ALL",
    "FROM near_coactivation(1)",
    "FROM coactive(1)",
    "FROM coactivation(1, 2)",
    "FROM feature_contexts(1) ORDER BY ALL",
)


def other_world() -> World:
    return small_world(("other", "b/c"))


def client(root: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(root / "catalog.duckdb"), read_only=True)


@pytest.mark.parametrize("name", ["my.fdb", "it's, ok=1.fdb"])
def test_another_database_at_the_old_path(tmp_path: Path, name: str) -> None:
    first, moved = tmp_path / name, tmp_path / "moved.fdb"
    make_store(first, small_world(("demo",)))
    with client(first) as there:
        expected = [there.sql(question).fetchall() for question in QUESTIONS]
    shutil.move(first, moved)
    make_store(first, small_world(("demo",)))
    with client(moved) as there:
        for question in QUESTIONS:
            with pytest.raises(duckdb.Error) as caught:
                there.sql(question).fetchall()
            assert len(str(caught.value).strip().split("\n\n")[0].splitlines()) == 1
    with client(moved) as there, featuredb.open(moved) as db:
        there.execute(f"SET VARIABLE featuredb_root = '{moved}'")
        assert [there.sql(question).fetchall() for question in QUESTIONS] == expected
        assert [db.sql(question).fetchall() for question in QUESTIONS] == expected


def test_copies_that_went_apart(tmp_path: Path) -> None:
    """Two publications of one number have marks of their own."""
    marks = set()
    for name in ("a.fdb", "b.fdb"):
        make_store(tmp_path / name, small_world(("demo",)))
        with featuredb.open(tmp_path / name) as db:
            mark = db.snapshot.mark
        assert mark is not None
        assert (Layout(tmp_path / name).root / mark.path).is_file()
        marks.add(mark.path)
    assert len(marks) == 2


def test_it_answers_where_it_was_made(tmp_path: Path) -> None:
    make_store(tmp_path / "a.fdb", other_world())
    with client(tmp_path / "a.fdb") as there, featuredb.open(tmp_path / "a.fdb") as db:
        for question in ("FROM documents", "FROM near('other/1')"):
            assert there.sql(question).fetchall() == db.sql(question).fetchall()
