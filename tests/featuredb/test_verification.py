"""Verification finds what is wrong and names the file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from featuredb.layout import Layout
from featuredb.snapshot import read_snapshot
from featuredb.verification import verify
from tests.make_store import MadeSae, World, make_store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    contexts = [[0, *rng.integers(1, 9, 10).tolist()] for _ in range(12)]
    dense = [
        np.where(rng.random((11, 6)) < 0.3, rng.random((11, 6)), 0).astype(np.float32)
        for _ in contexts
    ]
    rows = rng.normal(size=(6, 5)).astype(np.float32)
    world = World(
        [[c] for c in contexts],
        {"title": [f"t{i}" for i in range(12)]},
        ["<s>", *(f" w{i}" for i in range(8))],
        [MadeSae("s", dense, rows, rows)],
    )
    path = tmp_path_factory.mktemp("verify") / "made.fdb"
    make_store(path, world)
    return path


def test_a_sound_database(root: Path) -> None:
    report = verify(root)
    assert report.ok, str(report)
    assert report.activations == read_snapshot(Layout(root)).rows("s") > 0
    assert str(report).startswith("sound: ")


def test_every_flipped_bit_is_found_and_its_file_named(root: Path) -> None:
    chance = random.Random(0)
    files = [f for f in read_snapshot(Layout(root)).files() if f.bytes]
    for _ in range(100):
        entry = chance.choice(files)
        path = root / entry.path
        whole = path.read_bytes()
        damaged = bytearray(whole)
        bit = chance.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        report = verify(root)
        path.write_bytes(whole)
        assert [p.where for p in report.problems] == [entry.path]
        assert "SHA-256" in str(report)
    assert verify(root).ok


def test_every_truncated_and_every_missing_file_is_found(root: Path) -> None:
    for entry in read_snapshot(Layout(root)).files():
        path = root / entry.path
        whole = path.read_bytes()
        if whole:
            path.write_bytes(whole[: len(whole) // 2])
            assert [p.where for p in verify(root).problems] == [entry.path]
        path.unlink()
        assert [p.where for p in verify(root).problems] == [entry.path]
        path.write_bytes(whole)
    assert verify(root).ok


def test_damage_to_the_vectors_and_to_the_catalog_is_found(root: Path) -> None:
    data = next((root / "vectors.lance").rglob("*.lance/data/*"))
    catalog = root / "catalog.duckdb"
    for path, where in ((data, "vectors.lance/s"), (catalog, "catalog.duckdb")):
        whole = path.read_bytes()
        path.write_bytes(b"\0" * len(whole))
        assert [p.where for p in verify(root).problems] == [where]
        path.unlink()
        assert [p.where for p in verify(root).problems] == [where]
        path.write_bytes(whole)
    assert verify(root).ok
