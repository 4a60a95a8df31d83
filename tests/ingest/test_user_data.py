"""User data: written, replaced, carried, copied, checked, and never at the activations' cost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import fsspec
import pyarrow.parquet as pq
import pytest

import featuredb
from featuredb.errors import DatabaseLockedError, StorageError
from featuredb.store.files.lock import write_lock
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.store.user_data import MEASURED
from ingest.operations import user_data
from ingest.operations.user_data import refuse_no_writing, write_user_data
from tests.make_store import make_store
from tests.queries.test_questions import small_world
from tests.user_rows import measured


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "my.fdb"
    make_store(path, small_world(("demo",)))
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A database for this test."""
    return Path(shutil.copytree(made, tmp_path / "my.fdb"))


def _write(folder: Path, features: list[int], strength: float = 1.0) -> Snapshot:
    sae = read_snapshot(Layout(folder)).saes[0]
    return write_user_data(folder, MEASURED, measured(sae, features, strength), "measure")


def _strengths(folder: Path, snapshot: int | None = None) -> dict[int, float]:
    with featuredb.open(folder, snapshot=snapshot) as db:
        rows = db.sql("SELECT feature_id, strength FROM effects WHERE sae = 'demo'").fetchall()
    return dict(rows)


def test_rows_are_added_and_replaced_by_key(folder: Path) -> None:
    before = read_snapshot(Layout(folder))
    _write(folder, [3, 1], 1.0)
    after = _write(folder, [1, 2], 2.0)
    assert _strengths(folder) == {1: 2.0, 2: 2.0, 3: 1.0}
    assert _strengths(folder, before.number) == {}
    assert _strengths(folder, before.number + 1) == {1: 1.0, 3: 1.0}
    with featuredb.open(folder) as db:
        row = db.sql("FROM effects WHERE feature_id = 1").to_arrow_table().to_pylist()[0]
    assert row["raised_tokens"] == [{"token": " Bank", "change": 1.5}]
    measured, created = map(datetime.fromisoformat, (row["measured"], after.created))
    assert timedelta() <= created - measured <= timedelta(seconds=5)
    assert row["measured_by"]
    assert (row["q"], row["ablated"]) == (None, None)
    # Any DuckDB client sees it too.
    with duckdb.connect(str(folder / "catalog.duckdb"), read_only=True) as client:
        assert client.execute("SELECT count(*) FROM effects").fetchall() == [(3,)]
    made = {row.snapshot: row.operation for row in featuredb.snapshots(folder)}
    assert made == {1: "ingest", 2: "measure", 3: "measure"}


def test_no_other_file_changes(folder: Path) -> None:
    before = read_snapshot(Layout(folder))
    after = _write(folder, [1])
    own = {file.path for data in after.user_data for file in [data.file]} | {after.mark.path}  # type: ignore[union-attr]
    known = {file.path: file for file in before.files()}
    assert all(known[f.path] == f for f in after.files() if f.path not in own)
    assert featuredb.verify(folder, all_snapshots=True).ok
    featuredb.vacuum(folder, grace="0s")
    assert featuredb.verify(folder).ok
    assert _strengths(folder) == {1: 1.0}


def test_writers_at_once_lose_nothing(folder: Path) -> None:
    """Threads have their own locks, as processes do."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda f: _write(folder, [f], float(f)), range(4)))
    assert _strengths(folder) == {f: float(f) for f in range(4)}
    assert featuredb.verify(folder, all_snapshots=True).ok


def test_a_busy_writer_is_waited_for_then_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with write_lock(Layout(folder), "append"):
        refuse_no_writing(folder, "measure")  # it may be done by then
        sae = read_snapshot(Layout(folder)).saes[0]
        with pytest.raises(DatabaseLockedError, match="append"):
            write_user_data(folder, MEASURED, measured(sae, [1]), "measure", wait=0.1)
    assert _strengths(folder) == {}


def test_a_database_that_can_only_be_read_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(user_data, "write_atomically", refused)
    with pytest.raises(StorageError, match="no permission to write") as error:
        _write(folder, [1])
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert read_snapshot(Layout(folder)).number == 1
    assert featuredb.verify(folder).notes == ()


@pytest.fixture
def memory() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield "memory://shelf/my.fdb"
    fs.store.clear()


def test_pushed_and_pulled(folder: Path, tmp_path: Path, memory: str) -> None:
    featuredb.push(folder, memory)
    _write(folder, [1, 2])
    pushed = featuredb.push(folder, memory)
    assert pushed.files == 3  # the rows, the mark and the catalog
    with featuredb.open(memory) as there:
        assert there.sql("SELECT feature_id FROM effects ORDER BY 1").fetchall() == [(1,), (2,)]
    featuredb.pull(memory, tmp_path / "back.fdb")
    assert _strengths(tmp_path / "back.fdb") == {1: 1.0, 2: 1.0}
    with pytest.raises(StorageError, match="local"):
        featuredb.vacuum(memory)


def test_verify_finds_damage(folder: Path) -> None:
    file = folder / _write(folder, [1, 2]).user_data[0].file.path
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"?")
    (problem,) = featuredb.verify(folder).problems
    assert problem.where == file.relative_to(folder).as_posix()
    assert "SHA-256" in problem.what
    file.unlink()
    (problem,) = featuredb.verify(folder).problems
    assert problem.what == "is missing"


@pytest.mark.parametrize(
    ("features", "what"), [([1, 99], "does not exist"), ([1, 1], "two rows with one key")]
)
def test_verify_reads_what_is_written(folder: Path, features: list[int], what: str) -> None:
    _write(folder, features)
    assert [what in p.what for p in featuredb.verify(folder).problems] == [True]


def test_rows_outlive_the_sae(tmp_path: Path) -> None:
    """They come back with it, under any name."""
    world = small_world(("demo", "other"))
    world.saes[1] = replace(world.saes[1], hook="blocks.1.hook_resid_post")
    path = tmp_path / "two.fdb"
    make_store(path, world)
    sae = read_snapshot(Layout(path)).sae("other")
    write_user_data(path, MEASURED, measured(sae, [2]), "measure")
    with featuredb.open(path) as db:
        assert db.sql("SELECT sae, feature_id FROM effects").fetchall() == [("other", 2)]
    featuredb.drop(path, sae="other")
    with featuredb.open(path) as db:
        assert db.sql("FROM effects").fetchall() == []
    live = read_snapshot(Layout(path))
    assert len(pq.read_table(path / live.user_data[0].file.path)) == 1
    assert featuredb.verify(path).ok
