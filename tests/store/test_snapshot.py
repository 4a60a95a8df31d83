"""Opening existing, missing and newer databases."""

from __future__ import annotations

import json
import os
import socket
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FormatVersionError,
    OptionError,
)
from featuredb.store import history as snapshot_files
from featuredb.store.current import Pointer, read_pointer
from featuredb.store.history import (
    finish_publication,
    read_snapshot,
    refuse_nothing_to_write_to,
    write_snapshot,
)
from featuredb.store.layout import Layout
from featuredb.store.store import Store
from tests.make_store import MadeSae, World, make_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    dense = np.zeros((3, 4), np.float32)
    dense[1, 2] = 1.5
    rows = np.eye(4, dtype=np.float32)
    world = World([[[0, 1, 2]]], {}, ["<s>", " a", " b"], [MadeSae("s", [dense], rows, rows)])
    make_store(tmp_path / "made.fdb", world)
    return tmp_path / "made.fdb"


def test_a_snapshot_survives_writing_and_reading(root: Path) -> None:
    layout = Layout(root)
    snapshot = read_snapshot(layout)
    assert snapshot.rows("s") == 1
    assert snapshot.recorded_tokens("s") == 2
    write_snapshot(layout, snapshot)
    assert read_snapshot(layout) == snapshot
    assert all((root / f.path).stat().st_size == f.bytes for f in snapshot.files())
    with pytest.raises(KeyError):
        snapshot.sae("other")


@pytest.mark.parametrize("number", ["x", "1", 1.0, True])
def test_a_snapshot_is_named_by_a_number(root: Path, number: Any) -> None:
    with pytest.raises(OptionError, match="snapshot must be the number of one, not"):
        Store.open(root, number)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFoundError, match="there is no database at"):
        read_snapshot(Layout(tmp_path / "absent"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatabaseNotFoundError, match="not a featuredb database"):
        read_snapshot(Layout(tmp_path / "photos"))


def test_an_ingest_that_never_published(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    notes = ("", "[]", "{}", '{"purpose": 3}', '{"purpose": "ingest"}', note(GONE, "ingest"))
    for text in notes:
        (tmp_path / "LOCK").write_text(text)
        with pytest.raises(DatabaseNotReadyError, match=r"unfinished ingest and.* or delete the"):
            read_snapshot(Layout(tmp_path))
    (tmp_path / "LOCK").write_text(note(os.getpid(), "ingest"))
    with pytest.raises(DatabaseNotReadyError, match="still being ingested by process"):
        read_snapshot(Layout(tmp_path))
    (tmp_path / "LOCK").write_text(note(7, "ingest", "elsewhere"))
    unless = r"unless process 7 on elsewhere \(ingest\) still runs: run the same `featuredb ingest`"
    with pytest.raises(DatabaseNotReadyError, match=unless):
        read_snapshot(Layout(tmp_path))


def test_a_pull_that_never_finished(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text(note(GONE, "pull"))
    with pytest.raises(DatabaseNotReadyError, match=r"unfinished pull.* same `featuredb pull`"):
        read_snapshot(Layout(tmp_path))
    (tmp_path / "LOCK").write_text(note(os.getpid(), "pull"))
    with pytest.raises(DatabaseNotReadyError, match="still being pulled by process"):
        read_snapshot(Layout(tmp_path))


GONE = 1 << 30
"""No process has this number: Linux has at most 1 << 22."""


def note(pid: int, purpose: str, host: str | None = None) -> str:
    """What a lock file says."""
    return json.dumps({"pid": pid, "host": host or socket.gethostname(), "purpose": purpose})


def test_a_snapshot_that_is_vacuumed_while_it_is_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader between ``CURRENT`` and the snapshot continues with the live one."""
    layout = Layout(root)
    old = read_pointer(layout)
    second = write_snapshot(layout, replace(read_snapshot(layout), number=2))
    layout.snapshot(1).unlink()
    pointers = [old]
    monkeypatch.setattr(
        snapshot_files,
        "read_pointer",
        lambda _: pointers.pop() if pointers else read_pointer(layout),
    )
    assert read_snapshot(layout) == second
    assert pointers == []
    numbers = [[2], [2], [1, 2]]
    monkeypatch.setattr(snapshot_files, "kept_numbers", lambda _: numbers.pop())
    with pytest.raises(DatabaseNotFoundError, match="has no snapshot 1: it keeps 2"):
        read_snapshot(layout, 1)


def test_a_publication_that_is_all_but_done(root: Path) -> None:
    """The next writer finishes it, also the first one, and with skipped numbers."""
    layout = Layout(root)
    first = layout.current.read_bytes()
    layout.current.unlink()
    layout.lock.touch()
    with pytest.raises(DatabaseNotReadyError):
        read_snapshot(layout)
    refuse_nothing_to_write_to(layout)
    finish_publication(layout)
    assert layout.current.read_bytes() == first
    fourth = write_snapshot(layout, replace(read_snapshot(layout), number=4))
    layout.snapshot(2).write_text("{}")
    layout.current.write_bytes(first)
    finish_publication(layout)
    assert read_snapshot(layout) == fourth
    layout.catalog.write_bytes(b"another")
    layout.current.unlink()
    with pytest.raises(DatabaseNotReadyError):
        refuse_nothing_to_write_to(layout)


@pytest.mark.parametrize("number", [1, 2])
def test_an_older_format_is_refused_with_what_to_do(root: Path, number: int) -> None:
    path = next((root / "snapshots").iterdir())
    path.write_text(json.dumps({"format": number, "featuredb": "0.1.0", "runs": []}))
    (root / "CURRENT").write_text(f"{path.stem}\n")
    message = f"has format {number}, .* reads format 3: create the database again with"
    with pytest.raises(FormatVersionError, match=message) as raised:
        read_snapshot(Layout(root))
    assert "\n" not in str(raised.value)


def test_a_newer_format_is_refused_by_its_version_alone(root: Path) -> None:
    path = next((root / "snapshots").iterdir())
    path.write_text(json.dumps({"format": 99, "featuredb": "9.0", "shape": "unheard of"}))
    (root / "CURRENT").write_bytes(Pointer(path.stem, sha256(path.read_bytes()).hexdigest()).line())
    with pytest.raises(FormatVersionError, match=r"format 99, written by featuredb 9\.0"):
        read_snapshot(Layout(root))


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": "one"}'])
def test_a_damaged_snapshot_is_named(root: Path, text: str) -> None:
    path = next((root / "snapshots").iterdir())
    path.write_text(text)
    with pytest.raises(CorruptDatabaseError, match=str(path)):
        read_snapshot(Layout(root))


def test_current_naming_a_missing_snapshot(root: Path) -> None:
    (root / "CURRENT").write_text("000042\n")
    with pytest.raises(CorruptDatabaseError, match=r"000042\.json"):
        read_snapshot(Layout(root))
