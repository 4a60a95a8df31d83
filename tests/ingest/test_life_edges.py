"""Edge cases of changes: hooks, columns, weights and disks that have changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    FeatureDBError,
    IngestError,
    StorageError,
    UnknownContextError,
)
from featuredb.store.files.lock import write_lock
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from ingest import publish
from ingest.engines import local
from ingest.extract import partition, runs
from ingest.extract.partition import Collected
from ingest.run_plan import new_plan_id
from tests.content import assert_same_content
from tests.pretend_device import starts_processes
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

LATE = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and a database of corpus a and SAE one."""
    folder = tmp_path_factory.mktemp("edges")
    documents = [d for d in tiny_documents() if d["text"].strip()]
    write_jsonl(folder / "a.jsonl", documents[:15])
    write_jsonl(folder / "b.jsonl", documents[15:25])
    write_jsonl(folder / "c.jsonl", documents[25:30])
    tiny_model(folder / "model")
    tiny_sae(folder / "one", d_sae=48)
    tiny_sae(folder / "two", seed=5, d_sae=32)
    featuredb.ingest(
        folder / "made.fdb", corpus=str(folder / "a.jsonl"), model=str(folder / "model"),
        saes=[str(folder / "one")], names=["one"], dtype="float32", check=False,
    )  # fmt: skip
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "made.fdb", tmp_path / "mine.fdb"))


def add(path: Path, made: Path, sae: str, name: str, **told: Any) -> Any:
    return featuredb.add_saes(path, [str(made / sae)], [name], check=False, **told)


def append(path: Path, made: Path, corpus: str, **told: Any) -> Any:
    return featuredb.append(path, str(made / f"{corpus}.jsonl"), check=False, **told)


def files_of(path: Path) -> set[Path]:
    return {p.relative_to(path) for p in path.rglob("*") if p.is_file()} - {Path("LOCK")}


def test_an_append_reads_every_sae_where_it_was_read_before(made: Path, mine: Path) -> None:
    """The same weights at two hooks. The files do not name the second."""
    add(mine, made, "one", "late", hook=LATE)
    append(mine, made, "b")
    assert [sae.hook for sae in read_snapshot(Layout(mine)).saes][1] == LATE
    assert featuredb.verify(mine, source=100).ok


@starts_processes
def test_other_processes_add_an_sae_beside_those_that_are_there(
    made: Path, mine: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(mine, tmp_path / "alone.fdb"))
    add(alone, made, "two", "two", hook=LATE)
    add(mine, made, "two", "two", hook=LATE, engine="processes", workers=1)
    assert_same_content(mine, alone)


def test_an_sae_of_a_dropped_ones_name_is_not_it(made: Path, mine: Path) -> None:
    add(mine, made, "two", "x")
    featuredb.drop(mine, sae="x")
    add(mine, made, "one", "x")
    with pytest.raises(IngestError, match="has an SAE named 'x'"):
        add(mine, made, "two", "x")
    assert not add(mine, made, "one", "x").fresh


def test_a_name_that_nothing_here_remembers_is_not_used_for_other_directions(
    made: Path, mine: Path
) -> None:
    """A copy at a URL may still have the dropped SAE, under the paths it had."""
    add(mine, made, "two", "x")
    before = read_snapshot(Layout(mine)).vectors[-1]
    featuredb.drop(mine, sae="x")
    featuredb.vacuum(mine, grace=timedelta(0))
    assert not any((mine / file.path).exists() for file in before.files)
    add(mine, made, "one", "x")
    after = read_snapshot(Layout(mine)).vectors[-1]
    assert (after.sae, before.sae) == ("x", "x")
    assert after.table != before.table
    assert {f.path for f in after.files}.isdisjoint(f.path for f in before.files)


def test_lists_and_texts_of_one_name_are_refused(made: Path, mine: Path, tmp_path: Path) -> None:
    before = files_of(mine)
    told = write_jsonl(tmp_path / "lists.jsonl", [{"text": " river", "topic": ["a", "b"]}])
    with pytest.raises(IngestError, match=r"'topic' is list<.*> here and string in corpus a"):
        featuredb.append(mine, str(told), check=False)
    assert files_of(mine) == before


@pytest.mark.parametrize(
    ("one", "other"), [(True, 3), ("a", 3), (1.5, 3), ([1], ["a"]), (None, "a"), ({"a": 1}, True)]
)
def test_columns_of_two_types_read_the_same_everywhere(
    made: Path, mine: Path, tmp_path: Path, one: Any, other: Any
) -> None:
    for value in (one, other):
        rows = [{"text": text, "extra": value} for text in (" river stone", f" king {value}")]
        told = write_jsonl(tmp_path / f"{value}.jsonl", rows)
        featuredb.append(mine, str(told), check=False)
    with featuredb.open(mine) as db:
        ((feature,),) = db.sql(
            "SELECT feature_id FROM features ORDER BY n_contexts DESC, feature_id LIMIT 1"
        ).fetchall()
        python = db.top_contexts(feature, k=100).arrow()
        sql = db.sql(f"SELECT * FROM top_contexts({feature}, k := 100)").to_arrow_table()
        assert python.column("extra").to_pylist() == sql.column("extra").to_pylist()
        assert python.column("extra").null_count < len(python)


@pytest.mark.parametrize(("one", "other"), [(["a"], 3), (3, ["a"])])
def test_names_of_columns_differ_in_more_than_case(
    made: Path, mine: Path, tmp_path: Path, one: Any, other: Any
) -> None:
    """SQL treats them as one column, without a common type."""
    for name, value in (("extra", one), ("eXtra", other)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f" river {name}", name: value}])
    featuredb.append(mine, str(tmp_path / "extra.jsonl"), check=False)
    before = files_of(mine)
    with pytest.raises(IngestError, match=r"the column 'eXtra' is .* here and .* in corpus extra"):
        featuredb.append(mine, str(tmp_path / "eXtra.jsonl"), check=False)
    assert files_of(mine) == before


def test_a_segment_without_a_corpus_left_goes(made: Path, mine: Path) -> None:
    append(mine, made, "b")
    featuredb.compact(mine)
    append(mine, made, "c")
    featuredb.drop(mine, corpus="0")
    featuredb.drop(mine, corpus="1")
    (segment,) = read_snapshot(Layout(mine)).segments
    assert segment.rows > 0
    assert featuredb.verify(mine).ok
    first = read_snapshot(Layout(mine)).corpora[0].first_context
    with featuredb.open(mine) as db, pytest.raises(UnknownContextError, match=f"{first} to "):
        db.fires_in(0)


def test_a_snapshot_that_is_not_kept_is_answered_with_those_that_are(
    made: Path, mine: Path
) -> None:
    append(mine, made, "b")
    featuredb.drop(mine, corpus="0")
    (mine / "snapshots" / "2 (copy).json").write_text("{}")
    with pytest.raises(DatabaseNotFoundError, match=r"no snapshot 7: it keeps 1 to 3$"):
        featuredb.open(mine, snapshot=7)
    # One that a killed writer was about to publish.
    shutil.copyfile(mine / "snapshots/000003.json", mine / "snapshots/000004.json")
    with pytest.raises(DatabaseNotFoundError, match=r"no snapshot 4: it keeps 1 to 3$"):
        featuredb.open(mine, snapshot=4)
    assert featuredb.vacuum(mine, grace=timedelta(0)).snapshots == (1, 2)
    ran = CliRunner().invoke(main, ["info", str(mine), "--snapshot", "1"])
    assert ran.exit_code == 3
    assert "it keeps 3" in ran.stderr
    ran = CliRunner().invoke(main, ["vacuum", str(mine), "--grace", "0s"])
    assert "nothing to remove" in ran.stderr


def test_a_damaged_older_snapshot_stops_a_vacuum_and_nothing_else(made: Path, mine: Path) -> None:
    add(mine, made, "two", "two")
    older = mine / "snapshots" / "000001.json"
    older.write_bytes(older.read_bytes()[:-20])
    before = {path for path in mine.rglob("*") if path.is_file()}
    assert featuredb.append(mine, str(made / "b.jsonl"), check=False).fresh
    assert before <= {path for path in mine.rglob("*") if path.is_file()} | {older}
    assert featuredb.verify(mine).ok
    with pytest.raises(CorruptDatabaseError, match=r"000001\.json"):
        featuredb.vacuum(mine, grace=timedelta(0))
    assert before <= {path for path in mine.rglob("*") if path.is_file()}


def test_a_second_writer_is_refused_before_a_model_is_loaded(
    made: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("ingest.operations.append.load_inputs", load)
    with write_lock(Layout(mine), "compact"):
        for change in (
            lambda: append(mine, made, "b"),
            lambda: featuredb.drop(mine, corpus="0"),
            lambda: featuredb.vacuum(mine),
        ):
            with pytest.raises(DatabaseLockedError, match=rf"process {os.getpid()} on .*compact"):
                change()


def test_a_lock_file_of_a_dead_process_is_no_lock(made: Path, mine: Path) -> None:
    (mine / "LOCK").write_text('{"pid": 999999999, "host": "gone", "purpose": "append"}')
    assert append(mine, made, "b").fresh


def test_the_name_of_a_new_database_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: dict[int, set[str]] = {}
    fsync = os.fsync
    folders = [tmp_path, tmp_path / "new", tmp_path / "new" / "deeper"]

    def noting(handle: int) -> None:
        fsync(handle)
        for folder in folders:
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                flushed[folder.stat().st_ino] = {path.name for path in folder.iterdir()}

    monkeypatch.setattr(os, "fsync", noting)
    with write_lock(Layout(tmp_path / "new" / "deeper" / "my.fdb"), "ingest"):
        names = [flushed.get(folder.stat().st_ino) for folder in folders]
    assert names == [{"new"}, {"deeper"}, {"my.fdb"}]


def interrupt(*_: object, **__: object) -> None:
    """In place of a step of a change."""
    raise KeyboardInterrupt


@pytest.fixture
def cut(made: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Corpus b has been run and not been merged."""
    with monkeypatch.context() as patch:
        patch.setattr("ingest.operations.ingest.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            append(mine, made, "b")
    return mine


def staged(path: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """A file of an unfinished change, and its content."""
    file = path / "staging" / name
    return file, json.loads(file.read_text())


@pytest.mark.parametrize("name", ["fm.parquet", "tm.parquet", "directory.npy", "sinks.parquet"])
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "short"])
def test_a_partition_whose_run_is_damaged_is_run_again(
    made: Path, two: Path, cut: Path, name: str, gone: bool
) -> None:
    (file,) = cut.glob(f"segments/r*/{name}")
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-8])
    assert append(cut, made, "b").fresh
    assert_same_content(cut, two)


def test_a_partition_of_another_plan_is_run_again(
    made: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that outlived its driver ended when another corpus was under way."""
    held = Path(shutil.copytree(cut, tmp_path / "held.fdb"))
    featuredb.vacuum(cut, unfinished=True)
    with monkeypatch.context() as patch:
        patch.setattr("ingest.operations.ingest._run_partitions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            append(cut, made, "c")
    (run,) = held.glob("segments/r*")
    shutil.copytree(run, cut / "segments" / run.name)
    shutil.copy(held / "staging" / "p000000.json", cut / "staging")
    append(cut, made, "c")
    whole = Path(shutil.copytree(made / "made.fdb", tmp_path / "whole.fdb"))
    append(whole, made, "c")
    assert_same_content(cut, whole)


@pytest.mark.parametrize("instead", ["nothing", "another"])
@pytest.mark.parametrize("late", [False, True], ids=["before its run", "after its run"])
def test_a_worker_writes_nothing_once_its_plan_is_gone(
    made: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, instead: str, late: bool
) -> None:
    def give_up() -> None:
        if instead == "nothing":
            shutil.rmtree(mine / "staging")
        else:
            plan, told = staged(mine, "plan.json")
            plan.write_text(json.dumps(told | {"id": new_plan_id()}))

    def collect(*arguments: Any) -> Iterator[Collected]:
        for collected in partition.collect(*arguments):
            give_up()
            yield collected

    def write_run(*arguments: Any) -> Any:
        segment = runs.write_run(*arguments)
        give_up()
        return segment

    if late:
        monkeypatch.setattr("ingest.extract.partition.write_run", write_run)
    else:
        monkeypatch.setattr(local, "collect", collect)
    # The leftovers are reported, not cleaned up.
    monkeypatch.setattr("ingest.operations.append.take_back", lambda _: None)
    with pytest.raises(IngestError, match="given up or finished by others"):
        append(mine, made, "b")
    assert len(list(mine.glob("segments/r*"))) == int(late)
    assert not list(mine.glob("staging/p0*"))
    assert (mine / "staging").exists() == (instead == "another")


def test_a_change_that_an_older_featuredb_began_goes_on(
    made: Path, two: Path, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan and its summaries have no id."""
    for name, field in (("plan.json", "id"), ("p000000.json", "plan")):
        file, told = staged(cut, name)
        assert told.pop(field)
        file.write_text(json.dumps(told))
    monkeypatch.setattr(partition, "gather", interrupt)  # everything was run already
    append(cut, made, "b")
    assert_same_content(cut, two)


def test_compacting_says_what_is_true_where_positions_force_several_segments(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(two, tmp_path / "mine.fdb"))
    monkeypatch.setattr(publish, "POSITIONS", 1)
    ran = CliRunner().invoke(main, ["compact", str(path)])
    assert ran.exit_code == 0, ran.output
    assert "nothing to merge, there are as few segments as can be" in ran.stderr


CHANGES: dict[str, Callable[[Path, Path], Any]] = {
    "append": lambda path, made: append(path, made, "c"),
    "add-sae": lambda path, made: add(path, made, "two", "two"),
    "drop": lambda path, _: featuredb.drop(path, corpus="0"),
    "compact": lambda path, _: featuredb.compact(path),
}


@pytest.fixture(scope="module")
def two(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora in two segments."""
    path = tmp_path_factory.mktemp("two") / "two.fdb"
    shutil.copytree(made / "made.fdb", path)
    append(path, made, "b")
    return path


@pytest.mark.parametrize("change", ["drop", "compact"])
@pytest.mark.parametrize("where", ["write_derived", "built_catalog", "write_snapshot"])
def test_an_interrupted_change_leaves_no_file(
    made: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, where: str
) -> None:
    path = Path(shutil.copytree(two, tmp_path / "mine.fdb"))
    before = files_of(path)

    with monkeypatch.context() as patch:
        patch.setattr(f"ingest.publish.{where}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            CHANGES[change](path, made)
    assert files_of(path) == before
    CHANGES[change](path, made)
    assert featuredb.verify(path).ok


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", place], capture_output=True
    )
    if done.returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", place], capture_output=True)


def resize(disk: Path, room: int) -> None:
    """Leave about `room` bytes."""
    used = os.statvfs(disk)
    size = (used.f_blocks - used.f_bfree) * used.f_frsize + room
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.parametrize("room", [0, 60_000, 250_000])
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_full_disk_says_so_and_the_change_is_made_after(
    made: Path, two: Path, disk: Path, tmp_path: Path, change: str, room: int
) -> None:
    path = Path(shutil.copytree(two, disk / "mine.fdb"))
    before = files_of(path)
    resize(disk, room)
    with pytest.raises(StorageError, match="no space left on the disk") as caught:
        CHANGES[change](path, made)
    assert "\n" not in str(caught.value)
    if not (path / "staging" / "plan.json").exists():
        assert files_of(path) == before
    assert_same_content(path, two)
    resize(disk, 50_000_000)
    CHANGES[change](path, made)
    whole = Path(shutil.copytree(two, tmp_path / "whole.fdb"))
    CHANGES[change](whole, made)
    assert_same_content(path, whole)


def test_a_vacuum_makes_room_on_a_full_disk(two: Path, disk: Path) -> None:
    path = Path(shutil.copytree(two, disk / "mine.fdb"))
    (path / "LOCK").unlink()
    resize(disk, 0)
    with suppress(OSError), open(disk / "rest", "wb") as rest:
        while True:
            rest.write(bytes(512))
            rest.flush()
    assert featuredb.vacuum(path, grace=timedelta(0)).bytes > 0
    assert_same_content(path, two)


def test_nothing_is_written_to_a_read_only_disk(made: Path, two: Path, disk: Path) -> None:
    path = Path(shutil.copytree(two, disk / "mine.fdb"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for change in CHANGES.values():
        with pytest.raises(FeatureDBError, match="no permission to write"):
            change(path, made)
    with pytest.raises(FeatureDBError, match="no permission to write"):
        featuredb.vacuum(path)
    assert_same_content(path, two)
