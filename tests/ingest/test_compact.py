"""Unmerged runs answer like the merged ones, and compacting them changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.database import Database
from featuredb.errors import DatabaseNotFoundError
from featuredb.store.history import read_snapshot, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft, Segment
from featuredb.store.store import Store
from featuredb.store.unreferenced import clean_up
from ingest.compaction import Compaction, Merge, compact_segments
from ingest.operations.compact import compact
from tests.content import assert_same_content
from tests.make_store import MadeSae, World, make_store


@pytest.fixture
def world() -> World:
    rng = np.random.default_rng(3)
    documents = [[[0, *rng.integers(1, 20, 12).tolist()]] for _ in range(30)]
    dense = [
        np.where(rng.random((13, 9)) < 0.3, rng.integers(1, 5, (13, 9)), 0).astype(np.float32)
        for _ in documents
    ]
    rows = rng.normal(size=(9, 6)).astype(np.float32)
    names = [f" w{i}" for i in range(20)]
    return World(documents, {"title": list(map(str, range(30)))}, names,
                 [MadeSae("s", dense, rows, rows)], partitions=5)  # fmt: skip


@pytest.fixture
def unmerged(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same content, published with its five runs as they were written."""
    kept: list[Segment] = []
    whole = compact_segments

    def keep_runs(layout: Layout, draft: Draft, job: Compaction, merge: Merge) -> Any:
        kept.extend(job.segments)
        return whole(layout, draft, job, merge)

    with monkeypatch.context() as patch:
        patch.setattr("ingest.publish.compact_segments", keep_runs)
        make_store(tmp_path / "unmerged.fdb", world)
    layout = Layout(tmp_path / "unmerged.fdb")
    snapshot = read_snapshot(layout)
    snapshot = msgspec.structs.replace(snapshot, number=2, segments=tuple(kept))
    write_snapshot(layout, snapshot)
    return layout.root


def test_compacting_changes_no_answer(world: World, unmerged: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "merged.fdb", world)
    assert len(read_snapshot(Layout(unmerged)).segments) == 5
    assert_same_content(unmerged, tmp_path / "merged.fdb")
    old = featuredb.open(unmerged)
    before = [str(old.top_contexts(f, k=60)) for f in range(9)]
    outcome = compact(unmerged)
    assert (outcome.before, outcome.after, outcome.snapshot.number) == (5, 1, 3)
    assert_same_content(unmerged, tmp_path / "merged.fdb")
    new = featuredb.open(unmerged)
    assert [str(new.top_contexts(f, k=60)) for f in range(9)] == before
    assert [str(old.top_contexts(f, k=60)) for f in range(9)] == before
    clean_up(Layout(unmerged), outcome.snapshot)
    reopened = Store.open(unmerged, 2)  # files of an older snapshot are kept
    assert [str(Database(reopened).top_contexts(f, k=60)) for f in range(9)] == before
    again = compact(unmerged)
    assert (again.before, again.after, again.snapshot.number) == (1, 1, 3)


def test_the_command_says_what_it_did(unmerged: Path) -> None:
    ran = CliRunner().invoke(main, ["compact", str(unmerged)])
    assert ran.exit_code == 0
    assert "5 segments became 1" in ran.stderr
    ran = CliRunner().invoke(main, ["compact", str(unmerged)])
    assert "nothing to merge" in ran.stderr


def test_nothing_is_made_where_there_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFoundError):
        compact(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
