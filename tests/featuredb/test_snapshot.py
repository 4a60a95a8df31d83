"""Opening what is there, what is not, and what is from the future."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FormatVersionError,
)
from featuredb.layout import Layout
from featuredb.pointer import Pointer
from featuredb.snapshot_files import read_snapshot, write_snapshot
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


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFoundError, match="there is no database at"):
        read_snapshot(Layout(tmp_path / "absent"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatabaseNotFoundError, match="not a featuredb database"):
        read_snapshot(Layout(tmp_path / "photos"))


def test_still_being_ingested(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    with pytest.raises(DatabaseNotReadyError, match="still being ingested"):
        read_snapshot(Layout(tmp_path))


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
