"""A power cut loses unflushed files. Everything needed is flushed in time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import featuredb
from featuredb.store.files.atomic import write_atomically
from featuredb.store.history import finish_publication, read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Snapshot
from ingest import prepare
from ingest.run_plan import RunPlan
from tests.crashes.steps import STEPS, Scene
from tests.make_store import make_store
from tests.queries.test_questions import small_world


class Disk:
    """The flushed state of files below `root`, by inode: size and time of a file, names and inodes
    of a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flushed: dict[int, object] = {}
        self.checked: list[str] = []
        self._fsync, self._replace = os.fsync, os.replace

    def fsync(self, handle: int) -> None:
        """In place of `os.fsync`."""
        self._fsync(handle)
        self.flushed[os.fstat(handle).st_ino] = _state(Path(os.readlink(f"/proc/self/fd/{handle}")))

    def replace(self, source: Any, target: Any) -> None:
        """In place of `os.replace`: everything below the new name must survive without the rest."""
        layout, path = Layout(self.root), Path(target)
        for needed in self._needed(layout, Path(source), path):
            self._check(needed, path.name)
        self._replace(source, target)

    def _needed(self, layout: Layout, source: Path, target: Path) -> Iterator[Path]:
        """All files below `target` after `source` is renamed to it."""
        if self.root not in target.parents:
            return
        if target == layout.current:
            newest = layout.snapshots / f"{source.read_text().split()[0]}.json"
            snapshot = msgspec.json.decode(newest.read_bytes(), type=Snapshot)
            yield from (newest, layout.catalog)
            yield from (self.root / file.path for file in snapshot.files())
        elif target == layout.staging / "plan.json":
            draft = msgspec.json.decode(source.read_bytes(), type=RunPlan).draft
            yield self.root / draft.vocabulary.path
            owners = (*draft.corpora, *draft.saes, *draft.vectors)
            listed = [value for owner in owners for value in msgspec.structs.astuple(owner)]
            listed += [file for vectors in draft.vectors for file in vectors.files]
            yield from (self.root / file.path for file in listed if isinstance(file, File))
        else:
            return
        self.checked.append(target.name)

    def _check(self, path: Path, why: str) -> None:
        told = f"{path} when {why} is renamed"
        assert self.flushed.get(path.stat().st_ino) == _state(path), told
        while path != self.root:
            names = self.flushed.get(path.parent.stat().st_ino)
            assert isinstance(names, dict), told
            assert names.get(path.name) == path.stat().st_ino, told
            path = path.parent


def _state(path: Path) -> object:
    if path.is_dir():
        return {entry.name: entry.inode() for entry in os.scandir(path)}
    told = path.stat()
    return told.st_size, told.st_mtime_ns


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    watched = Disk(tmp_path / "my.fdb")
    monkeypatch.setattr(os, "fsync", watched.fsync)
    monkeypatch.setattr(os, "replace", watched.replace)
    monkeypatch.setitem(vars(prepare), "partition_tokens", lambda *_: 200)
    return watched


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_what_is_renamed_leads_to_what_is_flushed(tmp_path: Path, disk: Disk) -> None:
    scene = Scene.make(tmp_path)
    renamed = []
    for name, step in STEPS.items():
        step(scene, disk.root)
        renamed += ["plan.json"] if name in ("ingest", "append", "add-sae") else []
        renamed += ["CURRENT"] if name != "vacuum" else []
    assert disk.checked == renamed


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_what_is_pulled_is_flushed_before_it_is_live(tmp_path: Path, disk: Disk) -> None:
    """Every folder that is new, and those of a pull that was interrupted."""
    make_store(tmp_path / "made.fdb", small_world(("demo",)))
    featuredb.push(tmp_path / "made.fdb", f"file://{tmp_path}/far.fdb")
    featuredb.pull(f"file://{tmp_path}/far.fdb", disk.root)
    assert disk.checked == ["CURRENT"]
    Layout(disk.root).current.unlink()
    for folder in (disk.root, *(path for path in disk.root.rglob("*") if path.is_dir())):
        disk.flushed[folder.stat().st_ino] = {}
    (disk.root / "catalog.duckdb").unlink()
    featuredb.pull(f"file://{tmp_path}/far.fdb", disk.root)
    assert disk.checked == ["CURRENT", "CURRENT"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_publication_that_is_finished_is_flushed_too(tmp_path: Path, disk: Disk) -> None:
    """The killed writer may have renamed the catalog and not flushed the name."""
    scene = Scene.make(tmp_path)
    STEPS["ingest"](scene, disk.root)
    layout = Layout(disk.root)
    number = read_snapshot(layout).number
    layout.current.unlink()
    disk.flushed[disk.root.stat().st_ino] = {}
    finish_publication(layout)
    assert read_snapshot(layout).number == number
    assert disk.checked[-1] == "CURRENT"
    disk.flushed[disk.root.stat().st_ino] = {}
    with pytest.raises(AssertionError, match="CURRENT is renamed"):
        write_atomically(layout.current, layout.current.read_bytes())
