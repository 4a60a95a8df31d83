"""Vacuuming: retention of replaced snapshots, and cleanup of abandoned ingests."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.cli.exit_codes import ExitCode
from featuredb.errors import CorruptDatabaseError, OptionError
from featuredb.store import history as snapshot_files
from featuredb.store.files.atomic import write_atomically
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.store.units import duration_of
from featuredb.store.unreferenced import remove_unreferenced
from ingest import publish
from tests.archives.make import world
from tests.make_store import make_store

DAY_S = 86_400
DAYS_AGO = "2020-01-01T00:00:00+00:00"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots 1 to 3, all of them made and published long ago."""
    path = tmp_path_factory.mktemp("vacuum") / "old.fdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "now", lambda: DAYS_AGO)
        make_store(path, world())
        featuredb.drop(path, sae="elsewhere")
        featuredb.drop(path, sae="an/other")
    featuredb.vacuum(path, grace=timedelta(days=100_000))  # the runs it was made of
    all_aged(path)
    return path


@pytest.fixture
def mine(old: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(old, tmp_path / "mine.fdb"))


def aged(file: Path, seconds: float) -> None:
    """A file as if written that long ago."""
    when = time.time() - seconds
    os.utime(file, (when, when))


def all_aged(path: Path) -> None:
    """A database as if published a day ago."""
    for file in (path / "CURRENT", *(path / "snapshots").iterdir()):
        aged(file, DAY_S)


@pytest.mark.parametrize(
    ("fresh", "kept"),
    [(None, []), ("snapshots/000002.json", [1]), ("snapshots/000003.json", [2]), ("CURRENT", [2])],
)
def test_grace_counts_from_when_the_newer_one_took_over(
    mine: Path, fresh: str | None, kept: list[int]
) -> None:
    """A snapshot may have been made long before it was pulled, or its publication finished."""
    if fresh is not None:
        aged(mine / fresh, 60)
    done = featuredb.vacuum(mine)
    assert sorted(done.kept) == kept
    assert done.snapshots == tuple(number for number in (1, 2) if number not in kept)
    assert featuredb.vacuum(mine, grace=timedelta(minutes=1)).snapshots == tuple(kept)


def test_a_publication_that_a_vacuum_finishes_gives_readers_their_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "killed.fdb"

    def killed(file: Path, data: bytes) -> None:
        if file.name == "CURRENT":
            raise KeyboardInterrupt
        write_atomically(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "now", lambda: DAYS_AGO)
        make_store(path, world())
        patch.setattr(snapshot_files, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            featuredb.drop(path, sae="elsewhere")
    all_aged(path)
    with featuredb.open(path) as reader:
        assert list(featuredb.vacuum(path).kept) == [1]
        assert str(reader.top_contexts("elsewhere/0"))
    assert featuredb.open(path).snapshot.number == 2


def test_a_clock_that_is_ahead_counts_as_now(mine: Path) -> None:
    aged(mine / "CURRENT", -DAY_S)
    assert list(featuredb.vacuum(mine).kept) == [2]
    assert featuredb.vacuum(mine, grace=timedelta(0)).snapshots == (2,)


def test_a_grace_period_may_be_longer_than_dates_are(mine: Path) -> None:
    done = featuredb.vacuum(mine, grace=timedelta.max)
    assert done.snapshots == ()
    assert set(done.kept.values()) == {datetime(9999, 12, 31, tzinfo=UTC)}
    for hours in (-12, 14):
        assert done.kept[1].astimezone(timezone(timedelta(hours=hours))).year == 9999
    ran = CliRunner().invoke(main, ["vacuum", str(mine), "--grace", "9999999d"])
    assert ran.exit_code == 0, ran.output
    assert "2 older snapshots may go by 9999-12-3" in ran.stderr


@pytest.mark.parametrize("text", ["99999999999999d", "9" * 400 + "s"])
def test_a_time_that_nothing_holds_is_refused_in_one_line(mine: Path, text: str) -> None:
    with pytest.raises(OptionError, match="at most 999999999d") as caught:
        duration_of(text)
    assert "\n" not in str(caught.value)
    ran = CliRunner().invoke(main, ["vacuum", str(mine), "--grace", text])
    assert ran.exit_code == ExitCode.USAGE
    assert "at most" in ran.stderr
    assert sorted(path.name for path in (mine / "snapshots").iterdir())[0] == "000001.json"


def test_staging_without_a_plan_is_removed(mine: Path) -> None:
    (mine / "staging").mkdir()
    (mine / "staging" / "logits.one.parquet").write_bytes(b"half")
    done = featuredb.vacuum(mine, grace=timedelta.max)
    assert (done.files, done.bytes) == (1, 4)
    assert not (mine / "staging").exists()


def test_a_plan_that_cannot_be_read_is_given_up(mine: Path) -> None:
    (mine / "staging").mkdir()
    (mine / "staging" / "plan.json").write_text("{}")
    with pytest.raises(CorruptDatabaseError, match=r"plan\.json cannot be read .*--unfinished"):
        featuredb.vacuum(mine)
    featuredb.vacuum(mine, unfinished=True)
    assert not (mine / "staging").exists()
    assert featuredb.verify(mine).ok


def test_staging_is_gone_for_good_before_what_its_plan_needs(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not flushed, in any order."""
    (mine / "staging").mkdir()
    (mine / "staging" / "plan.json").write_text("{}")
    flushed: set[str] = {"staging"}
    fsync = os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        if os.path.samestat(os.fstat(handle), mine.stat()):
            flushed.clear()
            flushed.update(path.name for path in mine.iterdir())

    def removing(layout: Layout, live: Snapshot) -> tuple[int, int]:
        assert "segments" in flushed
        assert "staging" not in flushed
        return remove_unreferenced(layout, live)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr("ingest.operations.vacuum.remove_unreferenced", removing)
    featuredb.vacuum(mine, unfinished=True)
    assert "staging" not in flushed
