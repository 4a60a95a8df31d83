"""Several threads share one model: each gets the same answers as alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featuredb
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.verification.source import compare
from ingest.attached import AttachedSae
from ingest.extract import new_text, recorded
from ingest.extract.batches import batches
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import Rule, run_batch
from ingest.load_check.alternatives import find_alternatives
from ingest.load_check.sample import SampleTokens, read_states
from ingest.model.hooks import Capture
from ingest.model.load import LoadedModel, load_model
from ingest.sae import load_sae
from tests.ingest.loads import open_model
from tests.tiny import HOOK, tiny_documents, tiny_model, tiny_sae, write_jsonl

THREADS = 3
LATER = "blocks.2.hook_resid_post"

Case = tuple[Callable[[], Any], Any]
"""What a thread calls, and what it must be answered."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    tiny_model(folder / "model")
    tiny_sae(folder / "sae")
    tiny_sae(folder / "later", hook=LATER, seed=4)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return open_model(folder / "model")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    featuredb.ingest(
        folder / "db.fdb",
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents(12))),
        model=str(folder / "model"),
        saes=[str(folder / "sae"), str(folder / "later")],
        names=["sae", "later"],
        dtype="float32",
        device="cpu",
        check=False,
    )
    return folder / "db.fdb"


@pytest.fixture(autouse=True)
def slow_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow down every forward pass after its hooks are placed, so that threads overlap there."""
    run = Capture.run

    def slowly(self: Capture, *args: Any) -> Any:
        time.sleep(0.001)
        return run(self, *args)

    monkeypatch.setattr(Capture, "run", slowly)


def together(cases: list[Case], times: int = 4) -> None:
    """Every case several times, in threads that begin at different cases."""

    def work(first: int) -> list[str]:
        wrong = []
        for turn in range(times * len(cases)):
            number = (first + turn) % len(cases)
            call, answer = cases[number]
            try:
                given = call()
            except Exception as error:
                wrong.append(f"case {number}: {type(error).__name__}: {error}")
            else:
                wrong += [] if given == answer else [f"case {number}: another answer"]
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert [w for wrong in pool.map(work, range(THREADS)) for w in wrong] == []


def alone(calls: list[Callable[[], Any]]) -> list[Case]:
    """Each call with what it gives when nothing else runs."""
    return [(call, call()) for call in calls]


TEXTS = [" queen of the river", " enzyme protein cell", " iron iron engine wheel wheel verse"]


def test_fires_on(path: Path) -> None:
    with featuredb.open(path) as db:

        def ask(text: str) -> Callable[[], Any]:
            return lambda: db.fires_on(text).table.to_pylist()

        together(alone([ask(text) for text in TEXTS]))


def test_fires_on_in_sql(path: Path) -> None:
    with featuredb.open(path) as db:

        def ask(text: str) -> Callable[[], Any]:
            return lambda: db.sql("FROM fires_on(?, k := 5)", [text]).fetchall()

        together(alone([ask(text) for text in TEXTS]))


def test_a_model_is_loaded_once_for_threads_that_ask_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = 0

    def counted(*args: Any, **options: Any) -> LoadedModel:
        nonlocal loads
        loads += 1
        time.sleep(0.01)
        return load_model(*args, **options)

    recorded._load_model.cache_clear()
    monkeypatch.setattr(recorded, "load_model", counted)
    snapshot = read_snapshot(Layout(path))
    with ThreadPoolExecutor(THREADS) as pool:
        models = set(pool.map(recorded.recorded_model, [snapshot.model] * THREADS))
    assert (loads, len(models)) == (1, 1)


def test_verify_against_the_model_beside_new_text(path: Path) -> None:
    with featuredb.open(path) as db:

        def ask() -> Any:
            return db.fires_on(TEXTS[0]).table.to_pylist()

        sound = featuredb.verify(path)
        together(alone([ask, lambda: compare(path, sound, 6, new_text.encode_contexts)]))


def test_batches_of_an_ingest(model: LoadedModel, folder: Path) -> None:
    def run(name: str, hook: str, seed: int) -> Callable[[], Any]:
        attached = AttachedSae(name, load_sae(folder / name), model.hook(hook))
        tokens = np.random.default_rng(seed).integers(1, 600, 60).astype(np.uint16)
        (batch,) = batches(tokens, np.array([0, 20, 40, 60]), 1_000)
        rule = Rule(True, "float32")
        return lambda: [part.tolist() for part in run_batch(model, [attached], batch, rule)[0][:4]]

    together(alone([run("sae", HOOK, 0), run("later", LATER, 1), run("sae", HOOK, 2)]))


def sample(seed: int) -> SampleTokens:
    tokens = np.random.default_rng(seed).integers(1, 600, 90).astype(np.uint16)
    return SampleTokens(tokens, np.array([0, 30, 60, 90]), 0, True)


def test_the_load_check(model: LoadedModel) -> None:
    def read(hooks: list[str], seed: int) -> Callable[[], Any]:
        points = [model.hook(hook) for hook in hooks]
        memory = DeviceMemory(1_000, lambda _: None)
        return lambda: [
            states.x.tolist()
            for states in read_states(model, points, sample(seed), memory).values()
        ]

    together(alone([read([HOOK], 0), read([LATER], 1), read([HOOK, LATER], 2)]))


def test_other_readings(model: LoadedModel, folder: Path) -> None:
    def look(name: str, hook: str, seed: int) -> Callable[[], Any]:
        attached = AttachedSae(name, load_sae(folder / name), model.hook(hook))
        given = sample(seed)
        return lambda: [
            other.sentence()
            for other in find_alternatives(model, attached, given, None, refused=True)
        ]

    together(alone([look("sae", HOOK, 0), look("later", LATER, 1)]), times=2)


def test_a_hook_whose_width_only_the_model_tells(model: LoadedModel) -> None:
    def resolve(hook: str) -> Callable[[], Any]:
        return lambda: model.hook(hook)

    hooks = ["model.layers.0.mlp.act_fn", "model.layers.2.mlp.act_fn", "model.layers.1.self_attn"]
    together(alone([resolve(hook) for hook in hooks]))
