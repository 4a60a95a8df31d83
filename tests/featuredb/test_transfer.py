"""Pushing and pulling: what is copied, in which order, and what happens when it is interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import featuredb
from featuredb import transfer
from featuredb.catalog.build import build_catalog
from featuredb.cli import main
from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
)
from featuredb.layout import Layout
from featuredb.lock import write_lock
from featuredb.remote import PUSHING, Remote
from featuredb.snapshot import Snapshot, read_snapshot, write_snapshot
from tests.archives.packed import HERE, unpack
from tests.make_store import make_store
from tests.object_store import ObjectStore
from tests.queries.test_questions import small_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "my.fdb"
    snapshot = make_store(path, small_world(("demo", "other/one")))
    for run in {p.name for p in (path / "segments").iterdir()} - {s.id for s in snapshot.segments}:
        shutil.rmtree(path / "segments" / run)
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A database of this test's own."""
    return Path(shutil.copytree(made, tmp_path / "my.fdb"))


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty before and after."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


URL = "memory://shelf/my.fdb"


def _there(memory: Any) -> dict[str, bytes]:
    prefix = "/shelf/my.fdb/"
    return {str(p).removeprefix(prefix): memory.cat_file(p) for p in memory.find(prefix)}


def _here(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "LOCK"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def _next(folder: Path) -> Snapshot:
    """Publish a second snapshot: the first with one derived file in another place."""
    layout = Layout(folder)
    first = read_snapshot(layout)
    features = first.derived.features
    moved = msgspec.structs.replace(features, path="derived/000002/features.parquet")
    (folder / "derived/000002").mkdir()
    shutil.copyfile(folder / features.path, folder / moved.path)
    derived = msgspec.structs.replace(first.derived, features=moved)
    second = msgspec.structs.replace(first, number=2, derived=derived)
    build_catalog(layout, second)
    write_snapshot(layout, second)
    return read_snapshot(layout)


def test_there_and_back_again(object_store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    url = object_store.url("there.fdb")
    pushed = featuredb.push(folder, url)
    sizes = {name: len(data) for name, data in _here(folder).items()}
    assert object_store.keys("there.fdb") == sizes
    assert pushed.skipped == 0
    assert pushed.bytes == sum(sizes.values()) - sizes["CURRENT"] - sizes["snapshots/000001.json"]
    pulled = featuredb.pull(url, tmp_path / "back.fdb")
    assert _here(tmp_path / "back.fdb") == _here(folder)
    assert (pulled.files, pulled.bytes) == (pushed.files, pushed.bytes)
    assert featuredb.verify(tmp_path / "back.fdb").ok
    with featuredb.open(url) as there, featuredb.open(tmp_path / "back.fdb") as back:
        assert there.near("demo/1").arrow().equals(back.near("demo/1").arrow())


def test_a_database_of_format_1(memory: Any, tmp_path: Path) -> None:
    """Its snapshot lists neither LanceDB's files nor the catalog, which are copied all the same."""
    old = unpack(HERE / "format-1" / "made.tar.gz", tmp_path / "old.fdb")
    for run in (old / "segments").glob("r*"):  # left by how it was made
        shutil.rmtree(run)
    featuredb.push(old, URL)
    assert _there(memory) == _here(old)
    again = featuredb.push(old, URL)
    data = [p for p in old.rglob("*") if p.parent.name == "data"]
    small = [p for p in (old / "vectors.lance").rglob("*") if p.is_file() and p not in data]
    assert again.files == len(small) + 1
    featuredb.pull(URL, tmp_path / "back.fdb")
    assert _here(tmp_path / "back.fdb") == _here(old)
    assert featuredb.pull(URL, tmp_path / "back.fdb").files == again.files
    with featuredb.open(URL) as there, featuredb.open(old) as here:
        feature = f"{here.saes[0].name}/0"
        assert there.near(feature, k=60).arrow().equals(here.near(feature, k=60).arrow())
        assert there.fires_in(0).arrow().equals(here.fires_in(0).arrow())


def test_only_what_is_not_there_is_copied(memory: Any, folder: Path, tmp_path: Path) -> None:
    n_files = len({f.path for f in read_snapshot(Layout(folder)).files()})
    first = featuredb.push(folder, URL)
    again = featuredb.push(folder, URL)
    assert again.skipped == n_files
    assert again.files == first.files - n_files < 2
    featuredb.pull(URL, tmp_path / "back.fdb")
    assert featuredb.pull(URL, tmp_path / "back.fdb").skipped == n_files
    second = _next(folder)
    grown = featuredb.push(folder, URL)
    assert grown.snapshot == second.number
    assert grown.files == again.files + 1
    assert featuredb.pull(URL, tmp_path / "back.fdb").files == grown.files
    assert featuredb.open(tmp_path / "back.fdb").snapshot == second
    assert featuredb.open(URL, snapshot=1).snapshot.number == 1
    with pytest.raises(DatabaseNotFoundError, match="has no snapshot 7; its newest is 2"):
        featuredb.open(URL, snapshot=7)


def test_a_copy_of_a_later_snapshot_is_sound(memory: Any, folder: Path, tmp_path: Path) -> None:
    """It lists the snapshots before it, which are not copied."""
    _next(folder)
    featuredb.pull(_pushed(folder), tmp_path / "back.fdb")
    report = featuredb.verify(tmp_path / "back.fdb")
    assert report.ok, str(report)


def test_same_size_is_not_the_same(memory: Any, folder: Path, tmp_path: Path) -> None:
    featuredb.pull(_pushed(folder), tmp_path / "back.fdb")
    snapshot = read_snapshot(Layout(folder))
    for_all = snapshot.corpora[0].tokens
    wrong = bytes(for_all.bytes)
    # On the disk: no snapshot there vouches for it, so it is read.
    other = tmp_path / "partly.fdb"
    (other / for_all.path).parent.mkdir(parents=True)
    (other / for_all.path).write_bytes(wrong)
    featuredb.pull(URL, other)
    assert (other / for_all.path).read_bytes() == (folder / for_all.path).read_bytes()
    # At the URL: nothing there vouches for it, so it is copied again.
    for name in ("CURRENT", "snapshots/000001.json"):
        memory.rm(f"/shelf/my.fdb/{name}")
    memory.pipe_file(f"/shelf/my.fdb/{for_all.path}", wrong)
    featuredb.push(folder, URL)
    assert _there(memory) == _here(folder)


def _pushed(folder: Path) -> str:
    featuredb.push(folder, URL)
    return URL


class Stop(Exception):
    """What interrupts a copy in these tests."""


@pytest.mark.parametrize("after", [0, 1, 7, 20])
def test_an_interrupted_push_goes_on(
    memory: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real = transfer._upload
    done: list[str] = []

    def failing(layout: Layout, remote: Remote, file: Any) -> int:
        if len(done) >= after:
            raise Stop
        done.append(file.path)
        return real(layout, remote, file)

    monkeypatch.setattr(transfer, "_upload", failing)
    monkeypatch.setattr(transfer, "_AT_ONCE", 1)
    with pytest.raises(Stop):
        featuredb.push(folder, URL)
    assert "CURRENT" not in _there(memory)
    with pytest.raises(DatabaseNotReadyError, match="still being pushed"):
        featuredb.open(URL)
    monkeypatch.setattr(transfer, "_upload", real)
    assert featuredb.push(folder, URL).skipped == after
    assert _there(memory) == _here(folder)


def test_the_note_of_another_push_vouches_for_nothing_once_files_change(
    memory: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two databases pushed to one URL, each interrupted: the last one to finish is whole."""
    make_store(tmp_path / "b.fdb", small_world(("demo", "third")))
    real = transfer._upload

    def some(layout: Layout, remote: Remote, file: Any) -> int:
        if "index.npy" not in file.path and "tokens.bin" not in file.path:
            raise Stop
        return real(layout, remote, file)

    monkeypatch.setattr(transfer, "_AT_ONCE", 1)
    monkeypatch.setattr(transfer, "_upload", some)
    for source in (folder, tmp_path / "b.fdb", folder, tmp_path / "b.fdb"):
        with pytest.raises(Stop):
            featuredb.push(source, URL)
    monkeypatch.setattr(transfer, "_upload", real)
    featuredb.push(folder, URL)
    there = _there(memory)
    assert {name: there[name] for name in _here(folder)} == _here(folder)


def test_an_interrupted_pull_goes_on(
    memory: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pushed(folder)
    real = transfer._download
    done: list[str] = []

    def failing(layout: Layout, remote: Remote, file: Any) -> int:
        if len(done) == 5:
            raise Stop
        done.append(file.path)
        return real(layout, remote, file)

    back = tmp_path / "back.fdb"
    monkeypatch.setattr(transfer, "_AT_ONCE", 1)
    monkeypatch.setattr(transfer, "_download", failing)
    with pytest.raises(Stop):
        featuredb.pull(URL, back)
    assert not (back / "CURRENT").exists()
    leftover = (back / done[0]).with_name(".x.12345678.tmp")
    leftover.write_bytes(b"half")
    monkeypatch.setattr(transfer, "_download", real)
    assert featuredb.pull(URL, back).skipped == 5
    assert _here(back) == _here(folder)


def test_readers_see_the_old_snapshot_until_the_new_one_is_whole(
    memory: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pushed(folder)
    _next(folder)
    seen: list[int] = []
    real = transfer._put

    def watching(remote: Remote, path: str, data: bytes) -> None:
        with featuredb.open(URL) as db:
            db.near("demo/1")
            seen.append(db.snapshot.number)
        real(remote, path, data)

    monkeypatch.setattr(transfer, "_put", watching)
    featuredb.push(folder, URL)
    assert set(seen) == {1}
    assert featuredb.open(URL).snapshot.number == 2


def test_another_database_or_an_older_one_is_refused(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "old.fdb")
    _next(folder)
    _pushed(folder)
    with pytest.raises(DatabaseError, match=r"snapshot 2, which is newer than 1"):
        featuredb.push(tmp_path / "old.fdb", URL)
    make_store(tmp_path / "other.fdb", small_world(("third",)))
    with pytest.raises(DatabaseError, match="holds another database"):
        featuredb.push(tmp_path / "other.fdb", URL)
    before = _here(tmp_path / "other.fdb")
    with pytest.raises(DatabaseError, match="holds another database"):
        featuredb.pull(URL, tmp_path / "other.fdb")
    assert _here(tmp_path / "other.fdb") == before
    featuredb.pull(URL, tmp_path / "old.fdb")
    assert featuredb.open(tmp_path / "old.fdb").snapshot.number == 2


def test_damage_does_not_travel(memory: Any, folder: Path, tmp_path: Path) -> None:
    _pushed(folder)
    path = read_snapshot(Layout(folder)).derived.features.path
    memory.pipe_file(f"/shelf/my.fdb/{path}", b"x" * (folder / path).stat().st_size)
    with pytest.raises(CorruptDatabaseError, match=rf"{path} arrived otherwise"):
        featuredb.pull(URL, tmp_path / "back.fdb")
    assert not list((tmp_path / "back.fdb").rglob("*.tmp"))
    (folder / path).write_bytes(b"y" * (folder / path).stat().st_size)
    with pytest.raises(CorruptDatabaseError, match=rf"{path} is not what its snapshot lists"):
        featuredb.push(folder, "memory://elsewhere")
    (folder / path).unlink()
    with pytest.raises(CorruptDatabaseError, match=rf"{path} is missing"):
        featuredb.push(folder, "memory://elsewhere")


def test_nothing_to_copy_from_or_to(
    object_store: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatabaseNotFoundError):
        featuredb.push(tmp_path / "none.fdb", object_store.url("x.fdb"))
    with pytest.raises(DatabaseNotFoundError):
        featuredb.pull(object_store.url("none.fdb"), tmp_path / "back.fdb")
    assert not (tmp_path / "back.fdb").exists()
    with pytest.raises(DatabaseNotFoundError, match="make the bucket"):
        featuredb.push(folder, "s3://no-such-bucket/x.fdb")


def test_pulling_where_somebody_writes(memory: Any, folder: Path, tmp_path: Path) -> None:
    _pushed(folder)
    back = tmp_path / "back.fdb"
    with write_lock(Layout(back), "ingest"), pytest.raises(DatabaseLockedError):
        featuredb.pull(URL, back)
    (back / "staging").mkdir()
    with pytest.raises(DatabaseError, match="unfinished ingest"):
        featuredb.pull(URL, back)


def test_the_note_goes_and_a_local_path_serves_as_url(folder: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/far/my.fdb"
    featuredb.push(folder, url)
    assert _here(tmp_path / "far/my.fdb") == _here(folder)
    assert not (tmp_path / "far/my.fdb" / PUSHING).exists()


def test_progress_counts_to_the_end(memory: Any, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    done = featuredb.push(folder, URL, report=lambda a, b: told.append((a, b)))
    assert told[0] == (0, done.bytes)
    assert told[-1] == (done.bytes, done.bytes)
    assert told == sorted(told)


def test_from_the_command_line(memory: Any, folder: Path, tmp_path: Path) -> None:
    pushed = CliRunner().invoke(main, ["push", str(folder), URL], catch_exceptions=False)
    assert pushed.exit_code == 0
    assert pushed.stdout.startswith("snapshot 1: ")
    assert "0 were there already" in pushed.stdout
    pulled = CliRunner().invoke(main, ["pull", URL, str(tmp_path / "back.fdb")])
    assert pulled.stdout == pushed.stdout
    assert pulled.stderr == ""
    failed = CliRunner().invoke(main, ["pull", "memory://none", str(tmp_path / "none.fdb")])
    assert failed.exit_code == DatabaseNotFoundError.exit_code
