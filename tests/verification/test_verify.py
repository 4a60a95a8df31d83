"""Verification detects damage, names the file, and gives the remedy."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sqlite3
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featuredb
from featuredb.errors import DatabaseNotFoundError, DatabaseNotReadyError, OptionError
from featuredb.store import schemas
from featuredb.store.current import Pointer
from featuredb.store.history import read_snapshot, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.store.vectors import directions
from featuredb.verification import database, verify
from queries.catalog_file import build_catalog
from tests.make_store import MadeSae, World, make_store

FLIPS = 1_000 if os.environ.get("FEATUREDB_LONG") else 100
NO_CONTENT = ("LOCK",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    contexts = [[0, *rng.integers(1, 9, 10).tolist()] for _ in range(12)]
    dense = [
        np.where(rng.random((11, 6)) < 0.3, rng.random((11, 6)), 0).astype(np.float32)
        for _ in contexts
    ]
    for own in dense:
        own[:, 5] = 0
    rows = rng.normal(size=(6, 5)).astype(np.float32)
    world = World(
        [[c] for c in contexts],
        {"title": [f"t{i}" for i in range(12)]},
        ["<s>", *(f" w{i}" for i in range(8))],
        [MadeSae("s", dense, rows, rows)],
    )
    path = tmp_path_factory.mktemp("verify") / "made.fdb"
    with mock.patch.object(directions, "UNIT_ROWS_BEYOND", 0):
        snapshot = make_store(path, world)
    named = {s.id for s in snapshot.segments}
    for folder in (path / "segments").iterdir():
        if folder.name not in named:
            shutil.rmtree(folder)
    return path


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "copy.fdb"))


def content(root: Path) -> list[str]:
    """Every file of a database that has any content, by its path there."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name not in NO_CONTENT)
    return sorted(p.relative_to(root).as_posix() for p in files)


def test_a_sound_database(sound: Path) -> None:
    report = verify(sound)
    assert report.ok, str(report)
    assert report.notes == ()
    assert report.activations == read_snapshot(Layout(sound)).rows("s") > 0
    assert str(report).startswith("sound: ")
    assert (report.files, report.bytes) == (
        len(content(sound)),
        sum((sound / p).stat().st_size for p in content(sound)),
    )


def test_every_flipped_bit_is_found_and_its_file_named(sound: Path) -> None:
    chance = random.Random(0)
    files = content(sound)
    # Every file once, then any file, a small one as likely as a large one.
    chosen = [*files, *(chance.choice(files) for _ in range(FLIPS))][:FLIPS]
    tally: Counter[str] = Counter()
    for name in chosen:
        path = sound / name
        whole = path.read_bytes()
        if not whole:
            continue
        damaged = bytearray(whole)
        bit = chance.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            report = verify(sound)
        finally:
            path.write_bytes(whole)
        assert [p.where for p in report.problems] == [name], (bit, str(report))
        assert "restore it from a copy" in str(report)
        tally[name.partition("/")[0]] += 1
    assert sum(tally.values()) > 0.9 * FLIPS
    assert set(tally) == {name.partition("/")[0] for name in files}
    assert verify(sound).ok


def test_every_truncated_and_every_missing_file_is_found(sound: Path) -> None:
    for name in content(sound):
        path = sound / name
        whole = path.read_bytes()
        for length in sorted({len(whole) - 1, len(whole) // 2, 0} - {len(whole)}):
            if length >= 0:
                path.write_bytes(whole[:length])
                assert [p.where for p in verify(sound).problems] == [name], length
        path.unlink()
        assert [p.where for p in verify(sound).problems] == [name]
        path.write_bytes(whole)
    assert verify(sound).ok


def test_one_problem_is_singular_and_says_what_to_do(root: Path) -> None:
    (root / "derived" / "000001" / "features.parquet").unlink()
    lines = str(verify(root)).splitlines()
    assert lines[0].startswith("derived/000001/features.parquet: is missing; restore it")
    assert "computed from the activations" in lines[0]
    assert lines[-1].startswith("1 problem: ")


def test_a_damaged_pointer_does_not_hide_other_damage(root: Path) -> None:
    (root / "CURRENT").write_text("000001 and more\n")
    (root / "corpus" / "0" / "index.npy").unlink()
    assert [p.where for p in verify(root).problems] == ["CURRENT", "corpus/0/index.npy"]


def test_a_name_alone_to_nothing(root: Path) -> None:
    (root / "CURRENT").write_text("000042\n")
    (problem,) = verify(root).problems
    assert problem.where == "CURRENT"
    assert "snapshots/000042.json, which is not there" in problem.what


def test_where_there_is_no_database(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFoundError):
        verify(tmp_path / "absent")
    (root / "CURRENT").unlink()
    (root / "staging").mkdir()
    with pytest.raises(DatabaseNotReadyError):
        verify(root)


def test_files_that_no_snapshot_names_are_counted(root: Path) -> None:
    (root / "segments" / "left").mkdir()
    (root / "segments" / "left" / "fm.parquet").write_bytes(b"12345")
    (root / "LOCK").write_text("{}")
    (root / "staging").mkdir()
    (root / "staging" / "plan.json").write_text("{}")
    report = verify(root)
    assert report.ok
    assert [note.partition(";")[0] for note in report.notes] == [
        "1 file of 5 bytes is named by no snapshot"
    ]


def test_older_snapshots_are_checked_on_demand(root: Path) -> None:
    layout = Layout(root)
    old = read_snapshot(layout)
    shutil.copytree(root / "derived" / "000001", root / "derived" / "000002")
    moved = json.loads(layout.snapshot(1).read_text().replace("derived/000001", "derived/000002"))
    written_as = json.dumps(moved | {"number": 2, "older": []})
    new = msgspec.json.decode(written_as, type=Snapshot)
    build_catalog(layout, new)
    written = write_snapshot(layout, new)
    assert [f.path for f in written.older] == ["snapshots/000001.json"]
    assert read_snapshot(layout) == written
    assert read_snapshot(layout, 1) == old
    assert verify(root).ok
    assert verify(root, all_snapshots=True).ok
    for name in ("derived/000001/features.parquet", "snapshots/000001.json"):
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[:-2] + b"  ")
        assert verify(root).ok
        assert [p.where for p in verify(root, all_snapshots=True).problems] == [name]
        (root / name).write_bytes(whole)
    layout.snapshot(1).unlink()  # as vacuum does
    assert verify(root, all_snapshots=True).ok


def test_a_snapshot_published_meanwhile_is_no_damage(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(root / "catalog.duckdb", "ab") as catalog:
        catalog.write(b"\0")
    assert [p.where for p in verify(root).problems] == ["catalog.duckdb"]

    def published(layout: Layout, kept: object) -> list[Path]:
        layout.current.write_bytes(Pointer("000002", "0" * 64).line())
        return []

    monkeypatch.setattr(database, "unreferenced", published)
    report = verify(root)
    assert report.ok
    assert report.notes == ("snapshot 000002 was published meanwhile; this is about 1",)


# What follows is damage that every checksum agrees with: a writer's mistake.


def written_so(root: Path, name: str, rows: int | None = None) -> None:
    """Update the snapshot's entry to the file's current bytes."""

    def visit(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if node.get("path") == name and "sha256" in node:
                yield node
            for value in node.values():
                yield from visit(value)
        elif isinstance(node, list):
            for value in node:
                yield from visit(value)

    layout = Layout(root)
    path = layout.snapshot(1)
    snapshot = json.loads(path.read_text())
    data = (root / name).read_bytes()
    entries = list(visit(snapshot))
    assert entries
    for entry in entries:
        entry |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        entry["rows"] = entry["rows"] if rows is None else rows
    raw = json.dumps(snapshot).encode()
    path.write_bytes(raw)
    layout.current.write_bytes(Pointer(path.stem, sha256(raw).hexdigest()).line())


def column(table: pa.Table, name: str, change: Callable[[list[Any]], None]) -> pa.Table:
    """The table with a column changed in place as a list."""
    values = table.column(name).to_pylist()
    change(values)
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.field(at), pa.array(values, table.field(at).type))


def swap(values: list[Any]) -> None:
    values[0], values[1] = values[1], values[0]


def plus_one(values: list[Any]) -> None:
    values[2] += 1


def doubled(values: list[Any]) -> None:
    values[0] = values[0] * 2


def emptied(values: list[Any]) -> None:
    values[0] = 0


def far(values: list[Any]) -> None:
    values[0] = (1 << 31) - 1


def longer(values: list[Any]) -> None:
    values[0] = [v + 1 for v in values[0]]


DERIVED = "derived/000001"
MISTAKES: list[tuple[str, str, Callable[[list[Any]], None], str]] = [
    ("fm", "position", swap, "is not sorted by (feature, position)"),
    ("fm", "position", far, "has positions that no context of the corpus has"),
    ("fm", "feature_id", far, "has features beyond those that the snapshot says"),
    ("fm", "activation", emptied, "has activations that are zero or not finite"),
    ("fm", "activation", doubled, "copies disagree"),
    ("tm", "position", swap, "is not sorted by position"),
    ("tm", "position", far, "has contexts beyond those that the snapshot says"),
    ("corpus/vocabulary/vocabulary.parquet", "token_id", plus_one, "has token ids with gaps"),
    ("corpus/0/contexts.parquet", "context_id", plus_one, "has context ids with gaps"),
    ("corpus/0/contexts.parquet", "token_start", plus_one, "and index.npy disagree"),
    ("corpus/0/contexts.parquet", "context_index", plus_one, "out of their documents' order"),
    ("corpus/0/contexts.parquet", "token_ids", longer, "and tokens.bin disagree"),
    ("corpus/0/documents.parquet", "document_id", plus_one, "has document ids with gaps"),
    ("corpus/0/documents.parquet", "n_contexts", plus_one, "and index.npy disagree on"),
    ("corpus/0/documents.parquet", "n_tokens", plus_one, "has 121 tokens, should have 120"),
    (f"{DERIVED}/features.parquet", "feature_id", swap, "has not one row for each feature"),
    (f"{DERIVED}/features.parquet", "count", plus_one, "count of s disagree"),
    (f"{DERIVED}/features.parquet", "n_contexts", plus_one, "n_contexts of s disagree"),
    (f"{DERIVED}/features.parquet", "density", doubled, "density of s disagree"),
    (f"{DERIVED}/features.parquet", "min_activation", doubled, "min_activation of s disagree"),
    (f"{DERIVED}/features.parquet", "max_activation", doubled, "max_activation of s disagree"),
    (f"{DERIVED}/features.parquet", "mean_activation", doubled, "mean_activation of s disagree"),
    (f"{DERIVED}/features.parquet", "histogram", longer, "histogram of s disagree"),
    (f"{DERIVED}/summaries.parquet", "density", doubled, "and features.parquet disagree"),
    (f"{DERIVED}/summaries.parquet", "top_tokens", swap, "and features.parquet disagree"),
    (f"{DERIVED}/examples.s.parquet", "feature_id", plus_one, "are not where the directory says"),
    (f"{DERIVED}/examples.s.parquet", "rank", plus_one, "are not ranked from 1"),
    (f"{DERIVED}/examples.s.parquet", "context_id", swap, "are not its top contexts"),
    (f"{DERIVED}/examples.s.parquet", "token_indexes", longer, "disagree with its activations in"),
    (f"{DERIVED}/neighbors.decoder.parquet", "rank", swap, "is not sorted by (SAE, feature, rank)"),
    (f"{DERIVED}/neighbors.encoder.parquet", "score", swap, "has scores that do not descend"),
    (f"{DERIVED}/coactivation.parquet", "neighbor_id", far, "names a feature that does not exist"),
    (f"{DERIVED}/coactivation.parquet", "neighbor_id", emptied, "has a feature next to itself"),
]


@pytest.mark.parametrize(
    ("name", "of", "change", "said"), MISTAKES, ids=lambda v: getattr(v, "__name__", None)
)
def test_contents_are_checked_against_each_other(
    root: Path, name: str, of: str, change: Callable[[list[Any]], None], said: str
) -> None:
    (segment,) = read_snapshot(Layout(root)).segments
    known = {"fm": segment.feature_files[0].file.path, "tm": segment.token_files[0].file.path}
    name = known.get(name, name)
    table = column(pq.read_table(root / name), of, change)
    pq.write_table(table, root / name, row_group_size=schemas.FEATURE_ROW_GROUP)
    written_so(root, name)
    report = verify(root)
    assert said in str(report)
    folder = name.rpartition("/")[0] if "copies" not in said else "segments"
    assert any(p.where.startswith(folder) for p in report.problems)
    if not name.startswith("derived"):
        assert all("restore it from a copy" in p.remedy for p in report.problems)


def test_arrays_are_checked_against_what_they_index(root: Path) -> None:
    (segment,) = read_snapshot(Layout(root)).segments
    for name, said in (
        (segment.directory.path, "does not match the by-feature copy"),
        (f"{DERIVED}/examples.s.npy", "are not"),
        ("corpus/0/index.npy", "and index.npy disagree"),
        ("corpus/0/text_hashes.npy", "has not the hashes of the documents' texts"),
        ("matrices/s/decoder.npy", "its decoder directions are not those of matrices/s"),
    ):
        whole = (root / name).read_bytes()
        snapshot = (root / "snapshots" / "000001.json").read_bytes()
        pointer = (root / "CURRENT").read_bytes()
        array = np.load(root / name)
        array[1] = array[2]
        np.save(root / name, array)
        written_so(root, name)
        assert said in str(verify(root)), name
        (root / name).write_bytes(whole)
        (root / "snapshots" / "000001.json").write_bytes(snapshot)
        (root / "CURRENT").write_bytes(pointer)
    assert verify(root).ok


def test_sinks_and_what_was_recorded(root: Path) -> None:
    (segment,) = read_snapshot(Layout(root)).segments
    name = segment.sinks.path
    table = pa.table([[3, 3], [2, 1], [90.0, 80.0]], schema=schemas.SINKS)
    pq.write_table(table, root / name)
    written_so(root, name, 2)
    assert "is not sorted by (context, token)" in str(verify(root))
    pq.write_table(table.slice(0, 1), root / name)
    written_so(root, name, 1)
    assert "leaves 119 positions recorded, the snapshot says 120" in str(verify(root))
    pq.write_table(pa.table([[3], [11], [90.0]], schema=schemas.SINKS), root / name)
    written_so(root, name, 1)
    assert "has positions that the segment has not" in str(verify(root))


def test_a_file_that_cannot_be_decoded_is_a_problem_and_no_traceback(root: Path) -> None:
    for name in ("corpus/0/contexts.parquet", "corpus/0/tokens.bin", "catalog.duckdb"):
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[:8] + b"\xff" * (len(whole) - 16) + whole[-8:])
        written_so(root, name)
        report = verify(root)
        assert not report.ok
        assert any(p.where.startswith(name.rpartition("/")[0]) for p in report.problems)
        (root / name).write_bytes(whole)
        written_so(root, name)


def test_a_catalog_that_counts_wrong(root: Path) -> None:
    import duckdb

    with duckdb.connect(str(root / "catalog.duckdb")) as catalog:
        catalog.execute(
            "CREATE OR REPLACE VIEW activations AS "
            "SELECT 's' AS sae, 1 AS feature_id, 1 AS context_id, 1 AS token_index, "
            "1.0 AS activation WHERE false"
        )
    written_so(root, "catalog.duckdb")
    assert "counts 0 activations, should count" in str(verify(root))


def test_a_catalog_of_another_kind_fetches_nothing(root: Path) -> None:
    (root / "catalog.duckdb").unlink()
    with closing(sqlite3.connect(root / "catalog.duckdb")) as catalog, catalog:
        catalog.execute("CREATE TABLE tokens(a)")
    written_so(root, "catalog.duckdb")
    (problem,) = verify(root).problems
    assert "download" not in problem.what


def test_a_catalog_that_this_process_asks_is_checked_as_it_is_on_the_disk(root: Path) -> None:
    import duckdb

    path = str(root / "catalog.duckdb")
    with duckdb.connect(path, read_only=True, config={"threads": 1}) as client:
        before = client.execute("SELECT current_setting('memory_limit')").fetchall()
        client.execute("FROM activations LIMIT 1").fetchall()
        assert verify(root).ok
        # DuckDB would reuse the earlier file at this path.
        build_catalog(Layout(root), read_snapshot(Layout(root)))
        written_so(root, "catalog.duckdb")
        assert verify(root).ok
        assert client.execute("SELECT current_setting('memory_limit')").fetchall() == before
    with duckdb.connect(str(root / "another.duckdb")) as other:
        other.execute("CREATE VIEW activations AS SELECT 1 AS sae WHERE false")
    with duckdb.connect(path, read_only=True):
        (root / "another.duckdb").replace(path)
        written_so(root, "catalog.duckdb")
        assert "counts 0 activations, should count" in str(verify(root))


def test_little_memory_is_refused_and_any_size_gives_the_same_report(sound: Path) -> None:
    with pytest.raises(OptionError, match="memory must be a size of at least 100MB"):
        featuredb.verify(sound, memory="1KB")
    assert featuredb.verify(sound, memory="100MB") == verify(sound, memory=1) == verify(sound)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every feature fires on every token: 66 row groups of activations."""
    n, length, d_sae = 2_100, 256, 4
    rows = np.eye(d_sae, dtype=np.float32)
    world = World(
        [[[1] * length] for _ in range(n)],
        {},
        ["<s>", " w"],
        [MadeSae("s", [np.ones((length, d_sae), np.float32)] * n, rows, rows)],
        bos=None,
        context_size=length,
        partitions=1,
    )
    path = tmp_path_factory.mktemp("dense") / "dense.fdb"
    make_store(path, world)
    return path


def test_memory_follows_row_groups_and_not_the_store(dense: Path, sound: Path) -> None:
    """A feature's rows are never held whole. Allocations are counted, of numpy and of Arrow."""
    assert verify(sound).ok  # what is only loaded once
    usual = pa.default_memory_pool()
    arrow = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        report = verify(dense, memory=1 << 20)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert report.ok, str(report)
    # Held at once they would be 10 bytes each in Arrow, and their keys 8 in numpy.
    assert report.activations == 2_150_400
    assert held < 4 * report.activations
    assert 0 < arrow.max_memory() < 4 * report.activations


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for kind in (io.StringIO, Terminal):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", error := kind())
            assert verify(sound, progress=True).ok
            shown[kind] = error.getvalue()
    assert shown[io.StringIO] == ""
    assert "contents" in shown[Terminal]


def test_without_a_temporary_folder_all_but_the_catalog_is_checked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "corpus" / "0" / "index.npy").unlink()
    monkeypatch.setattr("tempfile.tempdir", str(root / "nowhere"))
    assert [p.where for p in verify(root).problems] == ["corpus/0/index.npy"]
