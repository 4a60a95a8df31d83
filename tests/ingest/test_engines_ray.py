"""The same ingest on a real Ray cluster of this machine, with workers and drivers killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featuredb.errors import IngestError
from featuredb.layout import Layout
from featuredb.snapshot import read_snapshot
from ingest import compact, prepare
from ingest.engines import ray as engine
from ingest.engines.ray import RayCrew, connection
from ingest.options import IngestOptions
from ingest.pipeline import ingest
from tests.content import assert_same_content
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

_PARTITION = 500


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Partitions and buckets small enough that there are several of both."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray keeps a token in the user's home.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(prepare, "partition_tokens", lambda *_: _PARTITION)
        patch.setattr(compact, "ROWS_PER_BUCKET", 4_000)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> IngestOptions:
    folder = tmp_path_factory.mktemp("tiny")
    other = tiny_sae(folder / "other", d_sae=40, hook="blocks.0.hook_resid_post", seed=5)
    return IngestOptions(
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents(100))),
        model=str(tiny_model(folder / "model")),
        saes=[str(tiny_sae(folder / "sae")), str(other)],
        names=["sae", "other"],
        dtype="float32",
        batch_tokens=64,
        check=False,
    )


@pytest.fixture(scope="module")
def local(inputs: IngestOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "local.fdb"
    ingest(path, inputs)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with connection(None) as ray:
        yield ray


def test_a_cluster_of_this_machine_listens_on_loopback_only(cluster: Any) -> None:
    assert [node["NodeManagerAddress"] for node in cluster.nodes()] == ["127.0.0.1"]


def test_a_killed_worker_loses_nothing(
    inputs: IngestOptions,
    local: Path,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(crew: RayCrew, worker: int) -> list[tuple[int, int, int]]:
        done: list[tuple[int, int, int]] = cluster.get(crew._actors[worker].look.remote())[0]
        return done

    handed: Counter[int] = Counter()
    collect = RayCrew.collect

    def killing(crew: RayCrew, worker: int, partition: int) -> None:
        pid = crew.pid(worker)
        collect(crew, worker, partition)
        handed[partition] += 1
        if sum(handed.values()) == 2:
            while not any(tokens for n, tokens, _ in look(crew, worker) if n == partition):
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(RayCrew, "collect", killing)
    path = tmp_path / "ray.fdb"
    ingest(path, replace(inputs, engine="ray", workers=2))
    assert len(handed) > 4
    assert set(handed.values()) == {1, 2}
    assert_same_content(path, local)
    assert not (path / "staging").exists()
    snapshot = read_snapshot(Layout(path))
    assert snapshot.runs[0].device == "2 x cpu"
    assert len(snapshot.segments_of("sae")[0].feature_files) > 4


def test_a_killed_merge_is_repeated(
    inputs: IngestOptions,
    local: Path,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge, marks = engine._merge, tmp_path / "marks"
    marks.mkdir()

    def killed_once(told: Any, places: Sequence[Any]) -> Any:
        """The first task of each SAE dies when it has merged, and before it can say so."""
        merged = merge(told, places)
        mark = marks / f"{told[2].sae}-{os.getpid()}"
        if not list(marks.glob(f"{told[2].sae}-*")):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return merged

    monkeypatch.setattr(engine, "_merge", killed_once)
    path = tmp_path / "ray.fdb"
    ingest(path, replace(inputs, engine="ray", workers=2))
    assert {mark.name.split("-")[0] for mark in marks.iterdir()} == {"sae", "other"}
    assert_same_content(path, local)


def test_merges_that_go_on_dying_end_the_ingest(
    inputs: IngestOptions,
    local: Path,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_merge", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        patch.setattr(engine, "TRIES", 1)
        path = tmp_path / "ray.fdb"
        with pytest.raises(IngestError, match="merging sae killed 2 workers: give them more"):
            ingest(path, replace(inputs, engine="ray", workers=2))
    assert not (path / "CURRENT").exists()
    ingest(path, inputs)
    assert_same_content(path, local)


_SCRIPT = """
import sys
from ingest import prepare
from ingest.options import IngestOptions
from ingest.pipeline import ingest
prepare.partition_tokens = lambda *_: int(sys.argv[1])
corpus, model, sae, other, path = sys.argv[2:]
ingest(path, IngestOptions(corpus=corpus, model=model, saes=[sae, other], names=["sae", "other"],
                           dtype="float32", batch_tokens=64, check=False, progress=True,
                           engine="ray", workers=2))
"""


def test_a_killed_driver_is_continued_by_another_engine(
    inputs: IngestOptions, local: Path, tmp_path: Path
) -> None:
    path = tmp_path / "begun.fdb"
    rest = [str(_PARTITION), inputs.corpus, inputs.model, *inputs.saes, str(path)]
    driver = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _SCRIPT, *rest], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while driver.poll() is None and not list((path / "staging").glob("p0*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    _, shown = driver.communicate()
    assert not (path / "CURRENT").exists()
    assert list((path / "staging").glob("p0*.json"))
    # Ray's own talk, and that of the workers, stays out of what the user reads.
    assert shown.splitlines()[-1] == "Ray: 2 workers of 1 cores", shown
    ingest(path, inputs)
    assert_same_content(path, local)
