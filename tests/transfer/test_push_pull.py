"""Pushing and pulling: copied files, their order, and interruptions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

import featuredb
from featuredb.cli import main
from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    UnfinishedError,
)
from featuredb.store import history
from featuredb.store.current import Pointer
from featuredb.store.files.atomic import sha256_of, write_atomically
from featuredb.store.files.lock import write_lock
from featuredb.store.files.remote import RemoteFiles
from featuredb.store.history import PUSHING, read_snapshot, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Snapshot
from featuredb.transfer import copying
from featuredb.transfer import push_pull as transfer
from queries.catalog_file import build_catalog
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
    """A database for this test."""
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


def _next(folder: Path, run: str | None = None, moved: str = "features") -> Snapshot:
    """Publish another snapshot: the last with one derived file in another place.

    run: the identity of the ingest that made it. By default it has the ingests of the last, as
    after a drop. moved: which file.
    """
    layout = Layout(folder)
    last = read_snapshot(layout)
    number = last.number + 1
    file = getattr(last.derived, moved)
    elsewhere = replace(file, path=f"derived/{number:06d}/{moved}.parquet")
    (folder / elsewhere.path).parent.mkdir()
    shutil.copyfile(folder / file.path, folder / elsewhere.path)
    runs = [replace(last.ingests[0], identity=run)] if run is not None else []
    after = replace(
        last,
        number=number,
        derived=replace(last.derived, **{moved: elsewhere}),
        ingests=(*last.ingests, *runs),
    )
    build_catalog(layout, after)
    write_snapshot(layout, after)
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
    (other / "LOCK").touch()
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

    def failing(layout: Layout, remote: RemoteFiles, file: Any) -> int:
        if len(done) >= after:
            raise Stop
        done.append(file.path)
        return real(layout, remote, file)

    monkeypatch.setattr(transfer, "_upload", failing)
    monkeypatch.setattr(copying, "_AT_ONCE", 1)
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

    def some(layout: Layout, remote: RemoteFiles, file: Any) -> int:
        if "index.npy" not in file.path and "tokens.bin" not in file.path:
            raise Stop
        return real(layout, remote, file)

    monkeypatch.setattr(copying, "_AT_ONCE", 1)
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

    def failing(layout: Layout, remote: RemoteFiles, file: Any) -> int:
        if len(done) == 5:
            raise Stop
        done.append(file.path)
        return real(layout, remote, file)

    back = tmp_path / "back.fdb"
    monkeypatch.setattr(copying, "_AT_ONCE", 1)
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

    def watching(remote: RemoteFiles, path: str, data: bytes) -> None:
        with featuredb.open(URL) as db:
            db.near("demo/1")
            seen.append(db.snapshot.number)
        real(remote, path, data)

    monkeypatch.setattr(transfer, "_put", watching)
    featuredb.push(folder, URL)
    assert set(seen) == {1}
    assert featuredb.open(URL).snapshot.number == 2


def test_a_snapshot_that_goes_while_it_is_opened(
    memory: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URL is a folder in use: a reader continues with the live one."""
    _pushed(folder)
    first = Pointer.parse(memory.cat_file("/shelf/my.fdb/CURRENT"))
    second = _next(folder)
    _pushed(folder)
    memory.rm("/shelf/my.fdb/snapshots/000001.json")
    now = Pointer.parse(memory.cat_file("/shelf/my.fdb/CURRENT"))
    pointers = [now, now, first]
    monkeypatch.setattr(history, "_remote_pointer", lambda _: pointers.pop())
    assert featuredb.open(URL).snapshot == second
    pointers += [first, first]
    with pytest.raises(CorruptDatabaseError, match="is not there"):
        featuredb.open(URL)


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


def _refused_both_ways(one: Path, other: Path, why: str) -> None:
    """Copied to one URL after the other, or onto each other, they stay what they were."""
    before = _here(one), _here(other)
    for source, target in ((one, other), (other, one)):
        url = f"memory://shelf/{source.name}"
        featuredb.push(source, url)
        with pytest.raises(DatabaseError, match=why):
            featuredb.pull(url, target)
        there = featuredb.open(url).snapshot
        with pytest.raises(DatabaseError, match=why):
            featuredb.push(target, url)
        assert featuredb.open(url).snapshot == there
    assert (_here(one), _here(other)) == before


def test_copies_that_were_added_to_apart_are_refused(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other.fdb"))
    _next(folder, run="here")
    _next(other, run="there")
    _next(other, run="there again")
    _refused_both_ways(folder, other, "their ingests differ")


def test_copies_that_were_dropped_from_apart_are_refused(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    """A drop, or a compaction, is no ingest: it shows in the snapshots."""
    other = Path(shutil.copytree(folder, tmp_path / "other.fdb"))
    _next(folder)
    _next(other, moved="coactivation")
    _refused_both_ways(folder, other, "their snapshots 2 differ")
    _next(other)
    _refused_both_ways(folder, other, "their snapshots 2 differ")


def _with_other_features(folder: Path, path: str) -> Snapshot:
    """The live snapshot with the same features in other bytes, at `path`, unpublished."""
    live = read_snapshot(Layout(folder))
    features = live.derived.features
    pq.write_table(pq.read_table(folder / features.path), folder / path, compression="none")
    size, digest = (folder / path).stat().st_size, sha256_of(folder / path)
    made = File(path, features.rows, size, digest)
    return replace(live, derived=replace(live.derived, features=made))


def test_files_of_one_name_that_differ_are_refused(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    """Even without the older snapshot."""
    other = Path(shutil.copytree(folder, tmp_path / "other.fdb"))
    _next(folder)
    second = _next(other)
    layout = Layout(other)
    write_snapshot(layout, _with_other_features(other, second.derived.features.path))
    third = _next(other, moved="coactivation")
    for number in (1, 2):
        layout.snapshot(number).unlink()
    assert not write_snapshot(layout, third).older
    _refused_both_ways(folder, other, r"derived/000002/features\.parquet differs")


def test_files_of_kept_snapshots_are_not_written_over(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    """As of an SAE that was dropped, vacuumed, and added again under its name."""
    back = Path(shutil.copytree(folder, tmp_path / "back.fdb"))
    first = read_snapshot(Layout(back)).derived.features.path
    content = (back / first).read_bytes()
    _next(folder)
    featuredb.pull(_pushed(folder), back)
    # A third snapshot that names the first one's path again, with other bytes below it.
    layout = Layout(folder)
    third = replace(_with_other_features(folder, first), number=3)
    build_catalog(layout, third)
    write_snapshot(layout, third)
    _pushed(folder)
    with pytest.raises(DatabaseError, match="keeps snapshot 1, whose derived/000001/features"):
        featuredb.pull(URL, back)
    assert (back / first).read_bytes() == content
    (back / "snapshots/000001.json").unlink()  # as a vacuum does
    assert featuredb.pull(URL, back).snapshot == 3


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
    (back / "staging/plan.json").write_text("{}")
    with pytest.raises(UnfinishedError, match="unfinished ingest"):
        featuredb.pull(URL, back)
    (back / "staging/plan.json").unlink()
    assert featuredb.pull(URL, back).snapshot == 1


def _before_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls are interrupted when only ``CURRENT`` is left to write."""

    def failing(path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise Stop
        write_atomically(path, data)

    monkeypatch.setattr(transfer, "write_atomically", failing)


def test_a_half_pulled_folder_says_that_it_is_pulled(
    memory: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pushed(folder)
    back = tmp_path / "back.fdb"
    with monkeypatch.context() as patch:
        _before_current(patch)
        with pytest.raises(Stop):
            featuredb.pull(URL, back)
    with pytest.raises(DatabaseNotReadyError, match=r"unfinished pull.* same `featuredb pull`"):
        featuredb.open(back)
    for write in (featuredb.vacuum, featuredb.compact):
        other = Path(shutil.copytree(back, tmp_path / f"{write.__name__}.fdb"))
        write(other)  # begins by finishing what was all but done
        assert _here(other) == _here(folder)
    assert featuredb.pull(URL, back).files == 1


def test_killed_around_the_catalog_it_is_whole(
    memory: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog belongs to the live snapshot, or to one that the next writer makes live."""
    back = Path(shutil.copytree(folder, tmp_path / "back.fdb"))
    _next(folder)
    third = _next(folder)
    _pushed(folder)
    catalog = (back / "catalog.duckdb").read_bytes()

    def failing(path: Path, data: bytes) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "write_atomically", failing)
        with pytest.raises(Stop):
            featuredb.pull(URL, back)
    assert (back / "catalog.duckdb").read_bytes() == catalog
    with monkeypatch.context() as patch:
        _before_current(patch)
        with pytest.raises(Stop):
            featuredb.pull(URL, back)
    assert (back / "catalog.duckdb").read_bytes() != catalog
    assert read_snapshot(Layout(back)).number == 1
    notes = featuredb.verify(back).notes
    assert any("the catalog is that of snapshot 3 already" in note for note in notes)
    featuredb.vacuum(back)
    assert read_snapshot(Layout(back)) == third
    report = featuredb.verify(back, all_snapshots=True)
    assert report.ok, str(report)
    assert not report.notes


def test_a_pull_finishes_what_the_last_writer_had_all_but_done(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    """So it is compared with the folder's file and not overwritten."""
    back = Path(shutil.copytree(folder, tmp_path / "back.fdb"))
    _next(folder)
    _pushed(folder)
    first = (back / "CURRENT").read_bytes()
    _next(back, run="mine")
    (back / "CURRENT").write_bytes(first)
    with pytest.raises(DatabaseError, match="their ingests differ"):
        featuredb.pull(URL, back)
    assert read_snapshot(Layout(back)).number == 2


def test_a_snapshot_that_was_never_live_is_not_kept(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    """A writer was killed before it put its catalog in place. A pull goes beyond its number."""
    back = Path(shutil.copytree(folder, tmp_path / "back.fdb"))
    _next(folder)
    _next(folder)
    _pushed(folder)
    (back / "snapshots/000002.json").write_bytes(b"{}")
    featuredb.pull(URL, back)
    assert [path.name for path in sorted((back / "snapshots").iterdir())] == [
        "000001.json",
        "000003.json",
    ]
    report = featuredb.verify(back, all_snapshots=True)
    assert report.ok, str(report)


def test_a_folder_with_other_things_in_it_is_left_alone(
    memory: Any, folder: Path, tmp_path: Path
) -> None:
    _pushed(folder)
    mine = tmp_path / "mine"
    (mine / "corpus").mkdir(parents=True)
    (mine / "corpus/thesis.txt").write_text("years of work")
    with pytest.raises(DatabaseError, match=r"not a featuredb database and not empty \(corpus\)"):
        featuredb.pull(URL, mine)
    assert sorted(p.name for p in mine.rglob("*")) == ["corpus", "thesis.txt"]


def test_a_pull_that_copied_nothing_leaves_nothing(
    memory: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its lock would make the folder look like a database."""
    _pushed(folder)

    def broken(remote: RemoteFiles, path: str, to: Path) -> None:
        raise Stop

    monkeypatch.setattr(RemoteFiles, "download", broken)
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new/back.fdb"):
        with pytest.raises(Stop):
            featuredb.pull(URL, target)
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "new").exists()


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
