"""Execution backends: dispatch to workers that may die, and processes of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from featuredb.errors import IngestError, MissingExtraError, PlanMismatchError
from featuredb.store.layout import Layout
from ingest import prepare
from ingest.engines.dispatch import (
    TRIES,
    Event,
    PartitionCollected,
    PartitionProgress,
    PartitionWritten,
    WorkerDied,
    WorkerFailed,
    WorkerNote,
    WorkerReady,
    dispatch,
)
from ingest.engines.processes import ProcessPool
from ingest.engines.ray.connection import connection
from ingest.engines.ray.pool import Share, share_of
from ingest.engines.worker import Job, Worker, job_of
from ingest.inputs import load_inputs
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from ingest.run_plan import Summary
from tests.content import assert_same_content
from tests.logs import logged
from tests.pretend_device import starts_processes
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@dataclass
class FakePool:
    """Workers that run what they are given in order, or die on request.

    dies: by partition, how many workers it kills while they collect it. failed_starts: workers that
    die before they are ready. A partition is written while another is collected.
    """

    dies: Counter[int] = field(default_factory=Counter)
    failed_starts: int = 0
    queue: deque[Event] = field(default_factory=deque)
    assigned: list[tuple[int, int]] = field(default_factory=list)
    started: int = 0
    to_collect: Counter[int] = field(default_factory=Counter)
    held: Counter[int] = field(default_factory=Counter)
    most_to_collect: int = 0
    most_held: int = 0

    def start_worker(self) -> int:
        self.started += 1
        alive = self.started > self.failed_starts
        self.queue.append(
            WorkerReady(self.started, f"worker {self.started}")
            if alive
            else WorkerDied(self.started, "fell")
        )
        return self.started

    def collect(self, worker: int, partition: int) -> None:
        self.assigned.append((worker, partition))
        self.to_collect[worker] += 1
        self.held[worker] += 1
        self.most_to_collect = max(self.most_to_collect, self.to_collect[worker])
        self.most_held = max(self.most_held, self.held[worker])
        self.queue.append(PartitionProgress(worker, partition, 3, 30))
        self.queue.append(PartitionProgress(worker, partition, 4, 40))
        if self.dies[partition]:
            self.dies[partition] -= 1
            self.queue.append(WorkerDied(worker, "was killed"))
        else:
            self.queue.append(PartitionCollected(worker, partition))

    def events(self) -> Iterator[Event]:
        event = self.queue.popleft()
        match event:
            case PartitionCollected(worker, partition):
                self.to_collect[worker] -= 1
                self.queue.append(PartitionWritten(worker, Summary(partition, 7, 0.0, ())))
            case PartitionWritten(worker, _):
                self.held[worker] -= 1
            case WorkerDied(worker, _):
                # Its other events are lost with it.
                self.queue = deque(e for e in self.queue if getattr(e, "worker", 0) != worker)
        yield event


def _dispatch(pool: FakePool, partitions: int, workers: int) -> tuple[list[int], int, list[str]]:
    """Partitions in the order they finished, the final token count, and notes."""
    tokens = [0]

    def report(more: int, activations: int) -> None:
        tokens[0] += more

    with logged() as notes:
        done = [s.partition for s in dispatch(pool, range(partitions), workers, report)]
    return done, tokens[0], notes


def test_every_partition_is_run_once_by_as_many_workers_as_asked() -> None:
    pool = FakePool()
    done, tokens, notes = _dispatch(pool, 9, 3)
    assert sorted(done) == list(range(9))
    assert tokens == 63
    assert pool.started == 3
    assert notes == []
    assert [partition for _, partition in pool.assigned] == list(range(9))


def test_a_worker_knows_its_next_partition_and_holds_a_bounded_number() -> None:
    pool = FakePool()
    _dispatch(pool, 20, 2)
    assert pool.most_to_collect == 2
    assert pool.most_held <= 4
    # None waits behind one that runs while another worker has nothing to do.
    pool = FakePool()
    _dispatch(pool, 3, 3)
    assert pool.most_to_collect == 1


def test_a_worker_that_writes_slowly_gets_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool()
    events = pool.events

    def late() -> Iterator[Event]:
        """Nothing is written while anything else can happen."""
        while isinstance(pool.queue[0], PartitionWritten) and not all(
            isinstance(event, PartitionWritten) for event in pool.queue
        ):
            pool.queue.rotate(-1)
        yield from events()

    monkeypatch.setattr(pool, "events", late)
    done, _, _ = _dispatch(pool, 20, 1)
    assert sorted(done) == list(range(20))
    assert pool.most_held == 4


def test_there_are_no_more_workers_than_partitions() -> None:
    pool = FakePool()
    _dispatch(pool, 2, 8)
    assert pool.started == 2
    assert _dispatch(FakePool(), 0, 8) == ([], 0, [])


def test_what_a_dead_worker_held_is_run_by_another_and_counted_once() -> None:
    pool = FakePool(dies=Counter({1: 1, 4: TRIES - 1}))
    done, tokens, notes = _dispatch(pool, 6, 2)
    assert sorted(done) == list(range(6))
    assert tokens == 42
    assert pool.started > TRIES
    assert len({worker for worker, partition in pool.assigned if partition == 4}) == TRIES
    assert notes[0].endswith("was killed: partition 0 and 1 will be run again")


def test_a_partition_that_goes_on_killing_workers_is_named() -> None:
    with pytest.raises(IngestError, match=f"partition 1 and 2 was lost with {TRIES} workers"):
        _dispatch(FakePool(dies=Counter({2: TRIES})), 4, 1)


def test_workers_that_never_start_end_the_ingest() -> None:
    done, _, notes = _dispatch(FakePool(failed_starts=TRIES - 1), 2, 1)
    assert done == [0, 1]
    assert notes == ["a worker fell: another takes its place"] * (TRIES - 1)
    with pytest.raises(IngestError, match="did not live to load the model"):
        _dispatch(FakePool(failed_starts=TRIES), 2, 1)


def test_notes_of_workers_are_passed_on() -> None:
    pool = FakePool()
    pool.queue.append(WorkerNote("less memory"))
    assert _dispatch(pool, 1, 1)[2] == ["less memory"]


def test_what_stops_a_worker_stops_the_ingest() -> None:
    pool = FakePool()
    pool.queue.append(WorkerFailed(1, PlanMismatchError("other files"), ""))
    with pytest.raises(PlanMismatchError, match="other files"):
        _dispatch(pool, 1, 1)
    pool = FakePool()
    pool.queue.append(WorkerFailed(1, None, "Traceback"))
    with pytest.raises(RuntimeError, match="a worker failed:\nTraceback"):
        _dispatch(pool, 1, 1)


@pytest.mark.parametrize(
    ("total", "workers", "gpus", "share"),
    [
        ({"CPU": 16, "GPU": 4}, None, 1.0, Share(4, 4.0, 1.0)),
        ({"CPU": 16, "GPU": 4}, None, 0.5, Share(8, 2.0, 0.5)),
        ({"CPU": 2, "GPU": 4}, None, 1.0, Share(4, 0.5, 1.0)),
        ({"CPU": 16, "GPU": 4}, 3, 2.0, Share(3, 5.0, 2.0)),
        ({"CPU": 16, "GPU": 4}, None, 0.0, Share(4, 4.0, 0.0)),
        ({"CPU": 10}, None, 1.0, Share(2, 5.0, 0.0)),
        ({"CPU": 2}, None, 1.0, Share(1, 2.0, 0.0)),
        ({"CPU": 2}, 4, 1.0, Share(4, 0.5, 0.0)),
    ],
)
def test_a_cluster_is_shared_out(
    total: dict[str, float], workers: int | None, gpus: float, share: Share
) -> None:
    assert share_of(total, workers, gpus) == share


def test_a_worker_with_a_gpu_asks_for_cores_that_are_beside_it() -> None:
    assert share_of({"CPU": 64, "GPU": 4}, None, 1.0).cpus == 6.0
    assert share_of({"CPU": 64, "GPU": 4}, None, 1.0, per_gpu=2.0).cpus == 2.0
    assert share_of({"CPU": 64, "GPU": 4}, None, 0.5, per_gpu=1.0).cpus == 0.5


def test_without_ray_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'featuredb\[ray\]'"),
        connection(None),
    ):
        pass


@pytest.mark.parametrize(
    ("total", "largest", "workers", "share"),
    [
        ({"CPU": 16}, 2, None, Share(8, 2.0, 0.0)),
        ({"CPU": 16}, 8, None, Share(4, 4.0, 0.0)),
        ({"CPU": 16}, 8, 1, Share(1, 8.0, 0.0)),
        ({"CPU": 6}, 2, 4, Share(4, 1.0, 0.0)),
    ],
)
def test_no_worker_asks_for_more_cores_than_a_node_has(
    total: dict[str, float], largest: float, workers: int | None, share: Share
) -> None:
    assert share_of(total, workers, 1.0, largest) == share


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of this machine where nothing answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("way", ["option", "environment", "auto", "file"])
def test_a_cluster_that_does_not_answer_is_reported_at_once(
    silent_port: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The ways in which Ray finds a cluster, in its order.
    pytest.importorskip("ray")
    address = f"127.0.0.1:{silent_port}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if way in ("environment", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", address)
    if way == "file":
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address + "\n")
    given = {"option": address, "environment": None}.get(way, "auto")
    began = time.monotonic()
    with (
        pytest.raises(IngestError, match=rf"no Ray cluster at {address} \(Connection refused"),
        connection(given),
    ):
        pass
    assert time.monotonic() - began < 20


def test_a_cluster_that_wants_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**_: object) -> None:
        last = "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: missing"
        raise ConnectionError("Failed to connect") from RuntimeError(f"Failed. Last error:\n{last}")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(IngestError, match=r"wants a token: set RAY_AUTH_MODE=token"),
        connection(f"127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine must be one of local, processes, ray"),
        ({"workers": 2}, "the local engine is one process"),
        ({"engine": "ray", "workers": 0}, "workers must be larger than 0"),
        ({"engine": "ray", "gpus_per_worker": 0.0}, "gpus_per_worker must be positive"),
        ({"engine": "processes", "ray_address": "auto"}, "needs --engine ray"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(IngestError, match=message):
        IngestOptions(corpus="c", model="m", saes=["s"], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> IngestOptions:
    folder = tmp_path_factory.mktemp("tiny")
    return IngestOptions(
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents())),
        model=str(tiny_model(folder / "model")),
        saes=[str(tiny_sae(folder / "sae"))],
        names=["sae"],
        dtype="float32",
        batch_tokens=64,
        check=False,
    )


@pytest.fixture
def job(inputs: IngestOptions, tmp_path: Path) -> Job:
    """Job of a worker on a plan with no finished partition."""
    sae = tiny_sae(tmp_path / "sae")
    options = replace(inputs, saes=[str(sae)])
    loaded = load_inputs(options)
    layout = Layout(tmp_path / "planned.fdb")
    settings = prepare.RunSettings.of(options, loaded.loaded.model.device)
    plan = prepare.plan_ingest(layout, loaded, settings, loaded.identity(options))
    return job_of(layout, plan, options, "cpu", None)


def test_a_worker_needs_no_files_of_the_sae(job: Job, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "sae")
    Worker(job, 0, print)


def test_a_worker_with_another_model_refuses(job: Job, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(
        PlanMismatchError, match=r"worker \d+ on .* other files .*model weights was"
    ):
        Worker(job._replace(model=str(other)), 0, print)


def test_a_worker_with_another_featuredb_or_without_the_plan_refuses(
    job: Job, tmp_path: Path
) -> None:
    with pytest.raises(IngestError, match=r"started by 0\.0\.0"):
        Worker(job._replace(version="0.0.0"), 0, print)
    with pytest.raises(IngestError, match="file system that every worker shares"):
        Worker(job._replace(root=tmp_path / "elsewhere"), 0, print)


def test_a_worker_whose_plan_was_discarded_says_so(job: Job) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    worker = Worker(job, 5, events.put)
    (job.root / "staging" / "plan.json").unlink()
    worker.collect(0)
    event = events.get(timeout=60)
    while not isinstance(event, WorkerFailed):
        event = events.get(timeout=60)
    assert event.worker == 5
    assert isinstance(event.error, IngestError)
    assert "plan" in str(event.error)


@starts_processes
def test_processes_give_the_local_content_even_when_one_is_killed(
    inputs: IngestOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 400)
    ingest(tmp_path / "local.fdb", inputs)
    assigned: Counter[int] = Counter()
    collect = ProcessPool.collect

    def killing(pool: ProcessPool, worker: int, partition: int) -> None:
        collect(pool, worker, partition)
        assigned[partition] += 1
        if sum(assigned.values()) == 2:
            # Wait until it reports progress on this partition.
            assert pool._pipes[worker].poll(60)
            pid = pool.pid(worker)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(ProcessPool, "collect", killing)
    path = tmp_path / "processes.fdb"
    ingest(path, replace(inputs, engine="processes", workers=2))
    assert len(assigned) > 4
    assert set(assigned.values()) == {1, 2}
    assert_same_content(path, tmp_path / "local.fdb")
    assert not (path / "staging").exists()
