"""A store's life at its edges: hooks, columns, weights and disks that are not what they were."""

from __future__ import annotations

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
from featuredb.layout import Layout
from featuredb.lock import write_lock
from featuredb.snapshot_files import read_snapshot
from tests.content import assert_same_content
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
    """The same weights at two hooks, neither of which the files say of the second."""
    add(mine, made, "one", "late", hook=LATE)
    append(mine, made, "b")
    assert [sae.hook for sae in read_snapshot(Layout(mine)).saes][1] == LATE
    assert featuredb.verify(mine, source=100).ok


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


def test_lists_and_texts_of_one_name_are_refused(made: Path, mine: Path, tmp_path: Path) -> None:
    before = files_of(mine)
    told = write_jsonl(tmp_path / "lists.jsonl", [{"text": " river", "topic": ["a", "b"]}])
    with pytest.raises(IngestError, match=r"'topic' is list<.*> here and string in corpus 0"):
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

    monkeypatch.setattr("ingest.append.load_inputs", load)
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

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"ingest.publish.{where}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            CHANGES[change](path, made)
    assert files_of(path) == before
    CHANGES[change](path, made)
    assert featuredb.verify(path).ok


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
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
