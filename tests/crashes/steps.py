"""Steps of a database's life, each in a process that can be killed.

Imported once by a fork server, which has run nothing: a step then starts in a fraction of a
second instead of loading torch again, and what steps import when they need it. Not LanceDB, whose
thread does not survive a fork, but the slow half of what it imports.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401
import faiss  # noqa: F401
import lance_namespace  # noqa: F401
import numba

import featuredb
import queries
from featuredb.errors import DatabaseError, UnknownFeatureError
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.user_data import MEASURED
from ingest import prepare
from ingest.operations import ingest as pipeline
from ingest.operations.user_data import write_user_data
from ingest.options import IngestOptions
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl
from tests.user_rows import measured

queries.QUESTIONS  # noqa: B018  imports them
numba.njit(lambda x: x)(1)  # loads its compiler

_WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Scene:
    """A model, two SAEs and two corpora on disk."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Scene:
        """Write them."""
        documents = [d for d in tiny_documents() if d["text"].strip()][:40]
        write_jsonl(folder / "a.jsonl", documents[:25])
        write_jsonl(folder / "b.jsonl", documents[25:])
        tiny_model(folder / "model")
        tiny_sae(folder / "one", d_sae=48)
        tiny_sae(folder / "two", seed=5, d_sae=32)
        return cls(folder)

    def __str__(self) -> str:
        return str(self.folder)


def _ingest(scene: Scene, path: Path) -> None:
    pipeline.ingest(
        path,
        IngestOptions(
            corpus=str(scene.folder / "a.jsonl"),
            model=str(scene.folder / "model"),
            saes=[str(scene.folder / "one")],
            names=["one"],
            dtype="float32",
            check=False,
        ),
    )


def _append(scene: Scene, path: Path) -> None:
    featuredb.append(path, str(scene.folder / "b.jsonl"), check=False)


def _add_sae(scene: Scene, path: Path) -> None:
    featuredb.add_saes(path, [str(scene.folder / "two")], ["two"], check=False)


def _write_user_data(_: Scene, path: Path) -> None:
    sae = read_snapshot(Layout(path)).sae("one")
    write_user_data(path, MEASURED, measured(sae, range(0, 48, 7)), "measure")


def _compact(_: Scene, path: Path) -> None:
    featuredb.compact(path)


def _drop_sae(_: Scene, path: Path) -> None:
    try:
        featuredb.drop(path, sae="two")
    except UnknownFeatureError:
        return  # it was done before the process died


def _drop_corpus(_: Scene, path: Path) -> None:
    try:
        featuredb.drop(path, corpus="0")
    except DatabaseError as error:
        if "there is no corpus" not in str(error):
            raise


def _vacuum(_: Scene, path: Path) -> None:
    featuredb.vacuum(path, grace=timedelta(0))


STEPS: dict[str, Callable[[Scene, Path], None]] = {
    "ingest": _ingest,
    "append": _append,
    "user-data": _write_user_data,
    "add-sae": _add_sae,
    "compact": _compact,
    "drop-sae": _drop_sae,
    "drop-corpus": _drop_corpus,
    "vacuum": _vacuum,
}
"""In order. Repeating a finished step does nothing."""


@dataclass(frozen=True)
class Death:
    """When to kill a step: before its n-th rename or opening for writing, or after some seconds."""

    event: int | None = None
    seconds: float | None = None


def _run(scene: Scene, path: Path, step: str, event: int | None, told: Any) -> None:
    vars(prepare)["partition_tokens"] = lambda *_: 200
    count = 0

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if name not in _WRITES or not str(arguments[0] if arguments else "").startswith(str(path)):
            return
        if name == "open" and not arguments[2] & _FOR_WRITING:
            return
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    started = time.monotonic()
    STEPS[step](scene, path)
    told.send((count, time.monotonic() - started))


def fork_server() -> ForkServerContext:
    """What starts processes that have this module, and all it imports, from the beginning."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Stage:
    """Runs steps."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._context = fork_server()

    def run(self, path: Path, step: str, death: Death | None = None) -> tuple[int, float] | None:
        """A step's number of events and seconds. None if it was killed as planned.

        A step that finishes before its kill counts as alive.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        event = death.event if death else None
        process = self._context.Process(target=_run, args=(self.scene, path, step, event, theirs))
        process.start()
        theirs.close()
        if death is not None and death.seconds is not None:
            ours.poll(death.seconds)
            process.kill()
        process.join(120)
        told: tuple[int, float] | None = None
        try:
            if ours.poll():
                told = ours.recv()
        except EOFError:
            told = None
        if death is None and told is None:
            raise AssertionError(f"{step} failed with exit code {process.exitcode}")
        if told is None and process.exitcode != -signal.SIGKILL:
            raise AssertionError(f"{step} ended with exit code {process.exitcode}, not killed")
        return told


def copy(path: Path, to: Path) -> Path:
    """A copy of a database, if it exists."""
    if path.exists():
        shutil.copytree(path, to)
    return to
