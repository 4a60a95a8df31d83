"""An ingest on an accelerator, one made up in `tests.pretend_device`, is the CPU's, bit for bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

import featuredb
from benchmarks.ingest import bare, in_memory
from featuredb.errors import ModelError, SaeError
from featuredb.store.layout import Layout
from ingest import prepare
from ingest.attached import AttachedSae
from ingest.engines.dispatch import Event, PartitionCollected, PartitionWritten, WorkerFailed
from ingest.engines.local import LocalEngine
from ingest.engines.worker import Worker, job_of
from ingest.extract import partition, pipeline
from ingest.extract.batches import Batch, batches
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import Recorded, Rule, run_batch
from ingest.extract.partition import Extractor
from ingest.extract.pipeline import Pipeline, as_recorded
from ingest.inputs import load_inputs
from ingest.model.hooks import resolve_hook
from ingest.model.load import LoadedModel
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from ingest.prepare import RunSettings, plan_ingest
from ingest.run_plan import Partition, read_summaries
from ingest.sae import LoadedSae, load_sae
from ingest.sae.activations import Activation, Gated, GroupMax, JumpReLU, ReLU, TopK
from tests.content import activations, assert_same_content
from tests.ingest.families import CONFIGS, VOCAB, WIDTH
from tests.ingest.loads import open_model
from tests.ingest.test_maskless import lone_model
from tests.pretend_device import (
    AVAILABLE,
    NAME,
    Device,
    DeviceMixError,
    pretend_device,
    without_inference_mode,
)
from tests.tiny import HOOK, tiny_documents, tiny_model, tiny_sae, write_jsonl

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this torch makes no device in Python")

MOST_WAITS = 1
"""How often the host may wait for a batch, whatever the number of SAEs."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The device, which "auto" chooses."""
    monkeypatch.setattr("ingest.model.device._best_device", lambda: NAME)
    with without_inference_mode(), pretend_device() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretend")
    tiny_model(folder / "model")
    write_jsonl(folder / "corpus.jsonl", tiny_documents(45))
    tiny_sae(folder / "relu")
    tiny_sae(folder / "topk", seed=2, architecture="topk", k=7, activation_fn_kwargs={"k": 7})
    ingest(folder / "cpu.fdb", options(folder, device="cpu"))
    return folder


def options(folder: Path, **others: Any) -> IngestOptions:
    given: dict[str, Any] = {
        "corpus": str(folder / "corpus.jsonl"),
        "model": str(folder / "model"),
        "saes": [str(folder / "relu"), str(folder / "topk")],
        "dtype": "float32",
        "batch_tokens": 256,
        "sink_threshold": 1.2,
        "check": False,
    }
    return IngestOptions(**given | others)


def test_what_a_gpu_punishes_is_an_error(device: Device) -> None:
    on_device = torch.ones(3, device=NAME)
    with pytest.raises(DeviceMixError, match=r"a tensor \[3\] on cpu among those on pretend"):
        on_device + torch.ones(3)
    with pytest.raises(TypeError, match="float64"):
        on_device.double()
    early = torch.empty(3).copy_(on_device, non_blocking=True)
    assert early.tolist() != [1.0] * 3, "it was not waited for"
    torch.get_device_module(NAME).synchronize()
    assert early.tolist() == [1.0] * 3
    source = torch.zeros(3)
    source.to(NAME, non_blocking=True)
    source += 1
    with pytest.raises(AssertionError, match="changed while it was copied"):
        torch.get_device_module(NAME).synchronize()


def test_it_has_as_much_memory_as_is_said() -> None:
    with pretend_device() as made:
        made.budget = made.used + 1_000
        held = torch.zeros(200, device=NAME)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(200, device=NAME)
        del held
        torch.zeros(200, device=NAME)


def test_a_whole_ingest(device: Device, folder: Path, tmp_path: Path) -> None:
    """Planned, checked, run with batches under way at once, and published."""
    outcome = ingest(tmp_path / "db.fdb", options(folder))
    assert outcome.snapshot.ingests[-1].device.startswith(NAME)
    assert_same_content(tmp_path / "db.fdb", folder / "cpu.fdb")
    with featuredb.open(tmp_path / "db.fdb") as db, featuredb.open(folder / "cpu.fdb") as cpu:
        text = " queen of the river enzyme protein"
        assert db.fires_on(text).table.num_rows > 0
        for sae in ("relu", "topk"):
            checks = (each.snapshot.sae(sae).check for each in (db, cpu))
            one, other = checks
            assert one == other


def extractor_on(made: Device, folder: Path, into: Path, **others: Any) -> Extractor:
    inputs = load_inputs(options(folder, **others))
    given = options(folder, **others)
    settings = RunSettings.of(given, inputs.loaded.model.device)
    into.mkdir()
    plan = plan_ingest(Layout(into), inputs, settings, inputs.identity(given))
    return Extractor.of(Layout(into), plan, inputs.loaded)


def test_the_host_waits_once_a_batch(device: Device, folder: Path, tmp_path: Path) -> None:
    extractor = extractor_on(device, folder, tmp_path / "db")
    (source,) = extractor.sources
    queue = list(batches(source.tokens, source.starts, 256))
    assert len(queue) > 6
    # The first batch is run step by step, so that the others have room, and padding is tried once.
    list(extractor.results(queue, source.rule, as_recorded))
    device.waits.clear()
    results = list(extractor.results(queue, source.rule, as_recorded))
    assert sum(device.waits.values()) <= MOST_WAITS * len(results), device.waits


def test_the_device_has_work_between_partitions(
    device: Device, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next partition is under way when one is complete. On a CPU, which does everything
    itself, a partition is complete before the next begins."""
    extractor = extractor_on(device, folder, tmp_path / "db")
    n = extractor.plan.draft.corpora[0].n_contexts
    edges = np.linspace(0, n, 4).astype(int).tolist()
    thirds = tuple(Partition(*edge) for edge in itertools.pairwise(edges))
    plan = msgspec.structs.replace(extractor.plan, partitions=thirds)
    extractor = replace(extractor, plan=plan)
    begun: list[int] = []

    def counted(*arguments: Any) -> Iterator[Batch]:
        begun.append(len(begun))
        return batches(*arguments)

    monkeypatch.setattr(partition, "batches", counted)
    pieces = []
    for ahead, at_once in ((0, [1, 2, 3]), (3, [2, 3, 3])):
        begun.clear()
        seen, collected = [], []
        numbers = range(len(thirds))
        for each in partition.collect(replace(extractor, ahead=ahead), numbers, lambda *_: None):
            seen.append(len(begun))
            collected.append(each)
        assert seen == at_once
        assert sum(each.tokens for each in collected) == extractor.sources[0].starts[-1]
        pieces.append([piece.all_codes() for each in collected for piece in each.pieces])
    for one, other in zip(*pieces, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_worker_of_several_has_work_between_partitions_too(
    device: Device, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 400)
    given = options(folder)
    extractor = extractor_on(device, folder, tmp_path / "db")
    n = len(extractor.plan.partitions)
    assert n > 3
    begun = 0
    seen: list[int] = []
    written: SimpleQueue[Event] = SimpleQueue()

    def counted(*arguments: Any) -> Iterator[Batch]:
        nonlocal begun
        begun += 1
        return batches(*arguments)

    def send(event: Event) -> None:
        if isinstance(event, PartitionCollected):
            seen.append(begun)
        if isinstance(event, (PartitionWritten, WorkerFailed)):
            written.put(event)

    monkeypatch.setattr(partition, "batches", counted)
    job = job_of(extractor.layout, extractor.plan, given, NAME, None)
    worker = Worker(job, 0, send)
    gate = threading.Event()
    worker._collector.submit(gate.wait)
    for number in range(n):
        worker.collect(number)
    gate.set()
    for _ in range(n):
        assert isinstance(written.get(timeout=60), PartitionWritten)
    # The first batch ever is run step by step: how many activations there are is learned from it.
    assert seen[0] in (1, 2)
    assert seen[1:] == [min(n, number + 2) for number in range(1, n)]


def test_benchmarks_run_there(device: Device, folder: Path, tmp_path: Path) -> None:
    extractor = extractor_on(device, folder, tmp_path / "db", saes=[str(folder / "relu")])
    for way in (bare, in_memory):
        way(extractor, 0)


# The rules --------------------------------------------------------------------------------------


def vector(seed: int, n: int = 64) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


RULES: dict[str, Activation] = {
    "relu": ReLU(),
    "jumprelu": JumpReLU(vector(1).abs() * 0.1),
    "jumprelu unclamped": JumpReLU(torch.tensor(-0.05), clamp=False),
    "topk": TopK(5),
    "topk signed": TopK(5, relu=False),
    "topk by magnitude": TopK(5, relu=False, by_magnitude=True),
    "topk weighted": TopK(5, weights=vector(2).abs()),
    "groupmax": GroupMax(8),
    "gated": Gated(vector(3) * 0.1, vector(4) * 0.1, vector(5).exp()),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedSae:
    return load_sae(str(tiny_sae(tmp_path_factory.mktemp("sae") / "sae", d_in=WIDTH, d_sae=64)))


def with_rule(sae: LoadedSae, rule: Activation) -> LoadedSae:
    bias = None if isinstance(rule, Gated) else sae.encoder.b_enc
    return replace(sae, encoder=replace(sae.encoder, activation=rule, b_enc=bias))


def some_batches() -> list[Batch]:
    rng = np.random.default_rng(0)
    made = []
    for lengths in ([12, 7, 7, 3], [9, 9], [5], [14, 13, 2]):
        ids = rng.integers(3, VOCAB, (len(lengths), max(lengths)))
        made.append(Batch(np.arange(len(lengths)), np.array(lengths), ids))
    return made


def moved(model: LoadedModel, saes: list[AttachedSae]) -> tuple[LoadedModel, list[AttachedSae]]:
    there = replace(model, model=model.model.to(NAME), device=torch.device(NAME))
    return there, [replace(each, sae=each.sae.to(NAME)) for each in saes]


def compare(model: LoadedModel, saes: list[AttachedSae], ahead: int = 2) -> None:
    """What is recorded on the device is what is on the CPU."""
    rule = Rule(True, "float16")
    wanted = [run_batch(model, saes, batch, rule) for batch in some_batches()]
    model, saes = moved(model, saes)
    pipe = Pipeline(model, saes, DeviceMemory(1_000), {}, rule)
    given = list(pipe.results(some_batches(), ahead, as_recorded))
    for ((_, recorded),), expected in zip(given, wanted, strict=True):
        for one, other in zip(recorded, expected, strict=True):
            same(one, other)


def same(one: Recorded, other: Recorded) -> None:
    for name in ("row", "token_index", *Recorded._fields[3:]):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_family_with_two_rules(device: Device, plain: LoadedSae, name: str) -> None:
    model = lone_model(name)
    hook = resolve_hook(model.model, "blocks.1.hook_resid_post")
    saes = [
        AttachedSae("relu", plain, hook, sink_norm=9.0, excluded=(7, 11)),
        AttachedSae("topk", with_rule(plain, RULES["topk"]), hook),
    ]
    compare(model, saes)


@pytest.mark.parametrize("ahead", [0, 2, 3])
def test_every_rule_with_sinks_and_without(device: Device, plain: LoadedSae, ahead: int) -> None:
    model = lone_model("llama")
    hook = resolve_hook(model.model, "blocks.1.hook_resid_post")
    norms = [None, 6.5]
    saes = [
        AttachedSae(f"{name} {norm}", with_rule(plain, rule), hook, sink_norm=norm)
        for name, rule in RULES.items()
        for norm in norms
    ]
    compare(model, saes, ahead)


def test_without_room_a_batch_is_run_again(
    device: Device, plain: LoadedSae, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_ROOM", 0.2)
    model = lone_model("llama")
    hook = resolve_hook(model.model, "blocks.1.hook_resid_post")
    compare(model, [AttachedSae("relu", plain, hook)])


@pytest.mark.parametrize("wrong", ["model", "sae"])
def test_values_that_are_not_finite_are_refused(
    device: Device, plain: LoadedSae, wrong: str
) -> None:
    model = lone_model("llama")
    hook = resolve_hook(model.model, "blocks.1.hook_resid_post")
    model, (attached,) = moved(model, [AttachedSae("relu", plain, hook)])
    memory, seen = DeviceMemory(1_000), {"relu": 60.0}
    if wrong == "model":
        model.model.model.layers[0].mlp.down_proj.weight.fill_(torch.inf)
    else:
        huge = plain.encoder.W_enc.clone()
        huge[:, 3] = 3e38
        sae = replace(plain, encoder=replace(plain.encoder, W_enc=huge)).to(NAME)
        attached = replace(attached, sae=sae)
    pipe = Pipeline(model, [attached], memory, seen, Rule(True, "float16"))
    with pytest.raises((ModelError, SaeError), match=r"NaN or infinite|NaN pre-activations"):
        list(pipe.results(some_batches(), 2, as_recorded))


# Memory -----------------------------------------------------------------------------------------


def test_an_ingest_goes_on_with_less_memory_than_it_would_take(
    device: Device, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, budget: int | None) -> int:
        start = device.used
        device.budget, device.peak = None if budget is None else start + budget, start
        given = options(folder, batch_tokens=4_096, progress=budget is not None)
        ingest(tmp_path / name, given)
        return device.peak - start

    whole = run("whole.fdb", None)
    assert run("short.fdb", whole // 2) <= whole // 2
    assert "the device ran out of memory with " in capsys.readouterr().err
    for sae in ("relu", "topk"):
        one, other = (activations(tmp_path / f"{n}.fdb", sae) for n in ("whole", "short"))
        assert abs(one.num_rows - other.num_rows) <= 2
    assert not list((tmp_path / "short.fdb").glob("staging/*"))


def test_too_little_for_one_context_is_a_clear_line(
    device: Device, folder: Path, tmp_path: Path
) -> None:
    inputs = load_inputs(options(folder))
    device.budget = device.used + 20_000
    given = options(folder)
    settings = RunSettings.of(given, inputs.loaded.model.device)
    (tmp_path / "db").mkdir()
    layout = Layout(tmp_path / "db")
    with pytest.raises(ModelError, match="the device has too little memory for"):
        plan_ingest(layout, inputs, settings, inputs.identity(given))
    assert open_model(folder / "model").hook(HOOK).width == 32


def test_summaries_are_complete(device: Device, folder: Path, tmp_path: Path) -> None:
    """Writers beside the device finish partitions in any order."""
    extractor = extractor_on(device, folder, tmp_path / "db")
    done = list(LocalEngine(extractor).run(range(len(extractor.plan.partitions)), lambda *_: None))
    assert len(read_summaries(extractor.layout, extractor.plan)) == len(done)
