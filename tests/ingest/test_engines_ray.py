"""The Ray backend on a real cluster of this machine, with workers and drivers killed."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featuredb.errors import IngestError
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from ingest import compaction as compact
from ingest import prepare
from ingest.engines.dispatch import Event, PartitionProgress
from ingest.engines.local import LocalEngine
from ingest.engines.ray import engine as ray_engine
from ingest.engines.ray import pool as ray_pool
from ingest.engines.ray.connection import LOCAL_ENVIRONMENT, LOOPBACK_ENVIRONMENT, connection
from ingest.engines.ray.pool import RayPool, share_of
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from tests.content import assert_same_content
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

_PARTITION = 500


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make partitions and buckets small, so there are several of each."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray stores a token in the home folder.
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


def test_killed_workers_and_merges_lose_nothing(
    inputs: IngestOptions,
    local: Path,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assigned: Counter[int] = Counter()
    killed: list[int] = []
    collect, events = RayPool.collect, RayPool.events

    def counting(pool: RayPool, worker: int, partition: int) -> None:
        assigned[partition] += 1
        collect(pool, worker, partition)

    def killing(pool: RayPool) -> Iterator[Event]:
        """Kill the worker that has the second partition, in the middle of it."""
        for event in events(pool):
            yield event
            if isinstance(event, PartitionProgress) and event.partition == 1 and not killed:
                killed.append(pool.pid(event.worker))
                os.kill(killed[0], signal.SIGKILL)

    merge, marks = ray_engine._merge, tmp_path / "marks"
    marks.mkdir()

    def killed_once(common: Any, places: Sequence[Any]) -> Any:
        """Kill the first task of each SAE after it has merged and before it returns."""
        merged = merge(common, places)
        mark = marks / f"{common[2].sae}-{os.getpid()}"
        if not list(marks.glob(f"{common[2].sae}-*")):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return merged

    monkeypatch.setattr(RayPool, "collect", counting)
    monkeypatch.setattr(RayPool, "events", killing)
    monkeypatch.setattr(ray_engine, "_merge", killed_once)
    path = tmp_path / "ray.fdb"
    ingest(path, replace(inputs, engine="ray", workers=2))
    assert len(assigned) > 4
    assert set(assigned.values()) == {1, 2}
    assert {mark.name.split("-")[0] for mark in marks.iterdir()} == {"sae", "other"}
    assert_same_content(path, local)
    assert not (path / "staging").exists()
    snapshot = read_snapshot(Layout(path))
    assert snapshot.ingests[0].device == "2 x cpu"
    assert len(snapshot.segments_of("sae")[0].feature_files) > 4


def test_merges_that_go_on_dying_end_the_ingest(
    inputs: IngestOptions,
    local: Path,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "ray.fdb"
    with monkeypatch.context() as patch:
        # Partitions by another engine, as only merges are looked at.
        patch.setattr(LocalEngine, "merge", staticmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            ingest(path, inputs)
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "_merge", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        patch.setattr(ray_engine, "TRIES", 1)
        with pytest.raises(IngestError, match="merging sae killed 2 workers: give them more"):
            ingest(path, replace(inputs, engine="ray", workers=2))
    assert not (path / "CURRENT").exists()
    ingest(path, inputs)
    assert_same_content(path, local)


def test_a_cluster_that_gives_no_worker_ends_the_ingest(
    inputs: IngestOptions,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Other:
        """Another user's actor, which takes every core."""

        def here(self) -> None:
            pass

    cores = cluster.cluster_resources()["CPU"]
    other = cluster.remote(Other).options(num_cpus=cores).remote()
    cluster.get(other.here.remote())
    path, options = tmp_path / "ray.fdb", replace(inputs, engine="ray", workers=2, progress=True)
    each = share_of({"CPU": cores}, 2, 0.0).cpus
    asked = f"(each asks for {each:g} cores, 0 of {cores:g} are free)"
    with monkeypatch.context() as patch:
        patch.setattr(ray_pool, "START_S", 3.0)
        patch.setattr(ray_pool, "_NOTE_AFTER_S", 1.0)
        with pytest.raises(IngestError, match="started no worker in") as raised:
            ingest(path, options)
    assert asked in str(raised.value)
    shown = capsys.readouterr().err.splitlines()
    assert shown.count(f"Ray has started no worker yet {asked}: waiting") == 1
    cluster.kill(other)
    assert not (path / "CURRENT").exists()


def test_workers_without_featuredb_end_the_ingest(
    inputs: IngestOptions, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(ray_pool.Actor):
        """Fails in its constructor, as on a node where the package is missing."""

        def __init__(self) -> None:
            raise ModuleNotFoundError("No module named 'ingest'")

    monkeypatch.setattr(ray_pool, "Actor", Elsewhere)
    path = tmp_path / "ray.fdb"
    message = (
        r"cannot start \(ModuleNotFoundError: No module named 'ingest'\): install this release"
    )
    with pytest.raises(IngestError, match=message):
        ingest(path, replace(inputs, engine="ray", workers=2))


_SCRIPT = """
import sys
from ingest import prepare
from ingest.options import IngestOptions
from ingest.operations.ingest import ingest
prepare.partition_tokens = lambda *_: int(sys.argv[1])
corpus, model, sae, other, path, *address = sys.argv[2:]
ingest(path, IngestOptions(corpus=corpus, model=model, saes=[sae, other], names=["sae", "other"],
                           dtype="float32", batch_tokens=64, check=False, progress=True,
                           engine="ray", workers=2, ray_address=address[0] if address else None))
"""


def _environment() -> dict[str, str]:
    """Environment of processes that import this featuredb and share a token."""
    return os.environ | {
        "PYTHONPATH": str(Path(ray_engine.__file__).parents[3]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "5f" * 32,
    }


@contextmanager
def _running_cluster(folder: Path) -> Iterator[tuple[str, int]]:
    """A separate cluster, bound to loopback: its address and its process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += ["--include-dashboard=false", f"--temp-dir={folder}"]
    log = folder / "head.log"
    with log.open("wb") as file:
        head = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env=_environment() | LOCAL_ENVIRONMENT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", head.pid
    finally:
        # `ray stop` would stop every cluster of this machine. Workers have process groups of their
        # own and end with their raylet.
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _listening(session: int) -> set[str]:
    """Addresses at which processes of a session listen, in the kernel's notation."""
    sockets = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) != session:
                continue
            for handle in (process / "fd").iterdir():
                sockets.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(handle)))
        except OSError:
            continue
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in sockets:
                listening.add(local.partition(":")[0])
    return listening


_LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_cluster_that_is_there_is_used_and_left_running(
    inputs: IngestOptions, local: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "there.fdb"
    rest = [str(_PARTITION), inputs.corpus, inputs.model, *inputs.saes, str(path)]
    # Ray creates sockets in it, and a socket's path is limited to 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        _running_cluster(Path(folder)) as (address, session),
    ):
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", _SCRIPT, *rest, address],
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        assert "Ray: 2 workers of 1 cores" in ran.stderr.splitlines()
        listening = _listening(session)
        assert listening
        assert listening <= _LOOPBACK
        # The cluster still runs, and its cores are free again.
        seen = subprocess.run(
            [sys.executable, "-c", _SEEN, address],
            capture_output=True,
            text=True,
            env=_environment() | LOOPBACK_ENVIRONMENT,
            timeout=120,
        )
        assert seen.stdout.split() == ["127.0.0.1", "2.0"], seen.stderr
    assert_same_content(path, local)
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", int(address.rpartition(":")[2])))


_SEEN = """
import sys
import time
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 20
while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
    time.sleep(0.1)
print(*(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
print(ray.available_resources().get("CPU"))
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
    # Messages of Ray and of the workers are not shown to the user.
    _, started, after = shown.partition("Ray: 2 workers of 1 cores\n")
    assert started, shown
    # A slow machine shows its progress, and that it waits for a first worker.
    own = re.compile(r" *\d+%  |Ray has started no worker yet")
    assert all(own.match(line) for line in after.splitlines()), shown
    ingest(path, inputs)
    assert_same_content(path, local)
