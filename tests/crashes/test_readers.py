"""Readers during writes get the answers of the snapshot they are pinned to."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import featuredb
from ingest import prepare
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from tests.crashes.readers import Truth, read_on
from tests.crashes.steps import Scene

SECONDS = 120 if os.environ.get("FEATUREDB_LONG") else 15
READERS = 3
GRACE = timedelta(seconds=20)
"""Longer than a reader keeps a snapshot open, even on a busy machine."""


def test_every_answer_is_of_the_readers_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 200)
    scene = Scene.make(tmp_path)
    corpora = {name: str(tmp_path / f"{name}.jsonl") for name in "ab"}

    def made(name: str) -> Path:
        path = tmp_path / f"{name}.fdb"
        ingest(
            path,
            IngestOptions(
                corpus=corpora[name],
                model=str(scene.folder / "model"),
                saes=[str(scene.folder / "one")],
                names=["one"],
                dtype="float32",
                check=False,
            ),
        )
        return path

    alone = {corpora[name]: made(name) for name in "ab"}
    sources = {featuredb.open(p).snapshot.corpora[0].source: p for p in alone.values()}
    truth = Truth.of(sources, "one")
    path = Path(shutil.copytree(tmp_path / "a.fdb", tmp_path / "live.fdb"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crashes.readers"])
    stop = context.Event()
    pipes, readers = [], []
    for number in range(READERS):
        ours, theirs = context.Pipe(duplex=False)
        reader = context.Process(target=read_on, args=(path, truth, "one", number, stop, theirs))
        reader.start()
        pipes.append(ours)
        readers.append(reader)
    changes = 0
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            featuredb.append(path, corpora["b"], check=False)
            featuredb.add_saes(path, [str(scene.folder / "two")], ["two"], check=False)
            featuredb.compact(path)
            featuredb.drop(path, sae="two")
            second = featuredb.open(path).snapshot.corpora[1].id
            featuredb.drop(path, corpus=second)
            featuredb.vacuum(path, grace=GRACE)
            changes += 5
    finally:
        stop.set()
        told: list[Any] = [
            pipe.recv() if pipe.poll(60) else "a reader did not answer" for pipe in pipes
        ]
        for reader in readers:
            reader.join(60)
    for answer in told:
        assert isinstance(answer, tuple), answer
        answers, seen = answer
        assert answers > 10
        assert len(seen) > 1, f"{changes} changes, but a reader saw only snapshots {seen}"
    print(f"{sum(t[0] for t in told):,} answers during {changes} changes, all of their snapshots")
