"""Every view, column and macro says what it is: in an answer, and in any DuckDB client."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

import featuredb
from featuredb.errors import QueryError
from tests.make_store import MadeSae, World, make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "a.fdb"
    dense, rows = np.array([[0], [1], [0.5]], np.float32), np.ones((1, 2), np.float32)
    world = World(
        documents=[[[0, 1, 2]]],
        metadata={"topic's": ["art"]},
        vocabulary=["<s>", " a", " b"],
        saes=[MadeSae("s", [dense], rows, rows)],
    )
    make_store(path, world)
    return path


def test_comments_of_the_catalog_are_what_the_answer_says(path: Path) -> None:
    with featuredb.open(path) as db:
        rows = list(db.schema())
    assert all(row.about for row in rows)
    with duckdb.connect(str(path / "catalog.duckdb"), read_only=True) as client:
        columns = client.execute(
            "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
        ).fetchall()
        whole = client.execute(
            "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal UNION ALL "
            "SELECT table_name, comment FROM duckdb_tables() UNION ALL "
            "SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal "
            "AND NOT starts_with(function_name, 'featuredb_')"
        ).fetchall()
    assert {(r.name, r.column, r.about) for r in rows if r.column is not None} == set(columns)
    assert {(r.name, r.about) for r in rows if r.column is None} == set(whole)
    assert ("documents", "topic's", "a column of the corpus") in columns


def test_one_view_with_its_columns(path: Path) -> None:
    with featuredb.open(path) as db:
        answer = db.schema("Windows")
        names = db.sql("FROM windows").columns
        with pytest.raises(QueryError, match="no view or macro window: did you mean windows"):
            db.schema("window")
        assert [row.column for row in answer] == [None, *names]
        assert "index of the first token that reaches the maximum" in str(answer)
        assert "window_start" not in str(db.schema())
        assert str(db.schema("near")).startswith("macro near(feature, k := 20)\n")
