"""Stores written by every format that is read: still valid, with the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

import featuredb
from featuredb.store import schemas
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from tests.archives.packed import HERE, answer, unpack

ARCHIVES = sorted(HERE.glob("format-*/*.tar.gz"))

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda a: f"{a.parent.name}-{a.name}")
def archive(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def store(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(archive, tmp_path_factory.mktemp("archive") / "old.fdb")


@pytest.fixture(scope="module")
def questions(archive: Path) -> list[dict[str, Any]]:
    answers = archive.with_name(archive.name.replace(".tar.gz", ".json"))
    asked: list[dict[str, Any]] = json.loads(answers.read_text(encoding="utf-8"))
    assert asked
    return asked


def test_formats_from_the_oldest_to_the_one_before_are_kept() -> None:
    kept = {int(a.parent.name.removeprefix("format-")) for a in ARCHIVES}
    assert kept >= set(range(schemas.OLDEST_FORMAT, schemas.FORMAT_VERSION))


def test_it_is_of_its_format_and_sound(archive: Path, store: Path) -> None:
    assert f"format-{read_snapshot(Layout(store)).format}" == archive.parent.name
    report = featuredb.verify(store)
    assert report.ok, str(report)


def test_the_handle_gives_the_answers_of_then(store: Path, questions: list[dict[str, Any]]) -> None:
    with featuredb.open(store) as db:
        for question in questions:
            words = question.get("call", question.get("sql", ""))
            if "search" in words or "fires" in words:
                continue  # rankings by rules that improve; the newest have their oracles
            # The macro that was called `coactive` has another name since.
            asked = dict(question)
            if "sql" in asked:
                asked["sql"] = asked["sql"].replace(" coactive(", " near_coactivation(")
            assert_rows(answer(db, asked), question["rows"])


def test_its_catalog_gives_the_answers_of_then(
    store: Path, questions: list[dict[str, Any]]
) -> None:
    """The original file, moved, in a plain DuckDB client."""
    with duckdb.connect(str(store / "catalog.duckdb"), read_only=True) as client:
        client.execute(f"SET VARIABLE featuredb_root = '{store}'")
        asked = [q for q in questions if "sql" in q]
        assert asked
        for question in asked:
            relation = client.sql(question["sql"], params=question["parameters"])
            assert_rows(relation.to_arrow_table().to_pylist(), question["rows"])


def assert_rows(have: Rows, want: Rows) -> None:
    """The same rows in the columns of that time. Columns may have been added since."""
    assert len(have) == len(want)
    for mine, theirs in zip(have, want, strict=True):
        assert {name: mine[name] for name in theirs} == {n: _close(n, v) for n, v in theirs.items()}


def _close(name: str, value: Any) -> Any:
    """Stored values are compared exactly, recomputed ones approximately."""
    if name in ("score", "specificity", "total") and value is not None:
        return pytest.approx(value, rel=1e-6, abs=2e-7)
    return value
