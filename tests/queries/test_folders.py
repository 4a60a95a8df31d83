"""Answers do not depend on the names of the folders above a database."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

import featuredb
from featuredb.errors import CorruptDatabaseError
from featuredb.store.files.location import LocalFiles
from tests.make_store import make_store
from tests.queries.test_questions import small_world

QUESTIONS = (
    "FROM features ORDER BY feature_id",
    "FROM activations ORDER BY ALL",
    "FROM documents",
    "FROM contexts",
    "FROM tokens ORDER BY ALL",
    "FROM examples ORDER BY ALL",
    "FROM near(1)",
    "FROM top_contexts(1)",
    "FROM top_contexts(1, k := 60)",
    "FROM feature_contexts(1) ORDER BY ALL",
    "FROM fires_in(1)",
    "FROM search('bank')",
)


def answers(client: duckdb.DuckDBPyConnection | featuredb.Database) -> list[object]:
    tables = [client.sql(question).to_arrow_table() for question in QUESTIONS]
    return [(table.column_names, table.to_pylist()) for table in tables]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> featuredb.Database:
    path = tmp_path_factory.mktemp("plain") / "a.fdb"
    make_store(path, small_world(("demo",)))
    return featuredb.open(path)


@pytest.fixture(scope="module")
def expected(plain: featuredb.Database) -> list[object]:
    return answers(plain)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with other answers."""
    world = small_world(("demo",))
    for sae in world.saes:
        sae.dense[:] = [context + 1 for context in sae.dense]
    path = tmp_path_factory.mktemp("another") / "s.fdb"
    make_store(path, replace(world, metadata={"topic": ["no"] * 3}))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "layer=12",
        "sae=gemma",
        "feature_id=3",
        "context_id=x",
        "topic=war",
        "a?",
        "a*",
        "[a]",
        "a'b",
    ],
)
def test_a_folder_s_name_is_only_a_name(
    plain: featuredb.Database, expected: list[object], another: Path, tmp_path: Path, name: str
) -> None:
    # Beside it folders that its name, read as a pattern, would match too.
    for beside in ("a", "ab"):
        shutil.copytree(another, tmp_path / beside / "s.fdb")
    path = tmp_path / name / "s.fdb"
    make_store(path, small_world(("demo",)))
    assert featuredb.verify(path).ok
    with featuredb.open(path) as db:
        assert answers(db) == expected
        text = db.sql("SELECT text FROM documents WHERE document_id = 1").fetchall()[0][0]
        assert db.fires_on(text).arrow() == plain.fires_on(text).arrow()
        assert db.top_contexts(1, where="topic = 'art'").arrow() == (
            plain.top_contexts(1, where="topic = 'art'").arrow()
        )
    with duckdb.connect(str(path / "catalog.duckdb"), read_only=True) as client:
        assert answers(client) == expected


def test_moved_below_such_a_folder(
    plain: featuredb.Database, expected: list[object], tmp_path: Path
) -> None:
    moved = tmp_path / "rank=1" / "[a]" / "s.fdb"
    shutil.copytree(plain.path, moved)
    with featuredb.open(moved) as db:
        assert answers(db) == expected
    with duckdb.connect(str(moved / "catalog.duckdb"), read_only=True) as client:
        client.execute(f"SET VARIABLE featuredb_root = '{LocalFiles(moved).duckdb_root}'")
        assert answers(client) == expected


def test_a_missing_file_below_such_a_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "[a]" / "s.fdb"
    make_store(path, small_world(("demo",)))
    with featuredb.open(path) as db:
        assert len(db.sql("FROM features").fetchall())
        (path / db.snapshot.segments[0].feature_files[0].file.path).unlink()
        with pytest.raises(CorruptDatabaseError, match="is missing or damaged"):
            db.sql("FROM feature_activations(1)")
