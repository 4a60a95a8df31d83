"""The ingest as a whole, on a small real model: stored activations match the SAE."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from featuredb.errors import (
    DatabaseLockedError,
    DatabaseNotReadyError,
    IngestError,
    PlanMismatchError,
)
from featuredb.store.files.lock import write_lock
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.values import FLOAT16_MAX
from ingest import prepare, publish
from ingest.extract import partition
from ingest.extract.batches import Batch, batches
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from ingest.sae import load_sae
from tests.content import activations, assert_same_content
from tests.crashes.steps import fork_server
from tests.pretend_device import starts_processes
from tests.tiny import LAYERS, tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> IngestOptions:
    folder = tmp_path_factory.mktemp("tiny")
    return IngestOptions(
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents())),
        model=str(tiny_model(folder / "model")),
        saes=[str(tiny_sae(folder / "sae"))],
        names=["sae"],
        dtype="float32",
        check=False,
    )


@pytest.fixture(scope="module")
def database(inputs: IngestOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.fdb"
    ingest(path, inputs)
    return path


@pytest.fixture
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 400)


def test_stored_activations_are_the_sae_on_the_models_own_hidden_states(
    inputs: IngestOptions, database: Path
) -> None:
    """Context by context, unbatched, through `output_hidden_states`. Float16 rounding and the
    different batch shapes are the only difference allowed."""
    model = AutoModelForCausalLM.from_pretrained(inputs.model)
    tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    sae = load_sae(inputs.saes[0])
    snapshot = read_snapshot(Layout(database))
    limit = snapshot.saes[0].check.median_norm * 10
    got = activations(database, "sae")
    dense: dict[int, np.ndarray] = {}
    context = recorded = 0
    for document in tiny_documents():
        ids = tokenizer(document["text"], add_special_tokens=False).input_ids
        for start in range(0, len(ids), 31):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 31]]])
            with torch.no_grad():
                states = model(window, output_hidden_states=True).hidden_states
            x = states[2][0]
            acts = sae.encode(x).numpy()
            keep = (x.norm(dim=1) <= limit).numpy()
            keep[0] = False
            recorded += int(keep.sum())
            dense[context] = acts * keep[:, None]
            context += 1
    assert len(states) == LAYERS + 1
    assert snapshot.recorded_tokens("sae") == recorded
    want = np.concatenate([dense[c] for c in range(context)])
    starts = np.cumsum([0] + [len(dense[c]) for c in range(context)])
    have = np.zeros_like(want)
    at = starts[got.column("context_id").to_numpy()] + got.column("token_index").to_numpy()
    have[at, got.column("feature_id").to_numpy()] = got.column("activation").to_numpy()
    assert (have != 0).sum() == got.num_rows
    # A value this close to the threshold may fall on either side when batches differ.
    close = np.abs(want) < 1e-5
    assert ((have != 0) == (want != 0))[~close].all()
    assert np.allclose(have, want, rtol=2**-11 + 1e-4, atol=1e-5)


def test_partitions_and_batches_do_not_change_the_content(
    inputs: IngestOptions, database: Path, tmp_path: Path, small_partitions: None
) -> None:
    ingest(tmp_path / "cut.fdb", inputs)
    assert len(list((tmp_path / "cut.fdb" / "segments").glob("*/tm/*"))) > 3
    whole, cut = activations(database, "sae"), activations(tmp_path / "cut.fdb", "sae")
    assert abs(whole.num_rows - cut.num_rows) <= 2
    if whole.num_rows == cut.num_rows:
        assert whole.select([0, 1, 2]).equals(cut.select([0, 1, 2]))
    want, have = (t.column("activation").to_numpy().sum() for t in (whole, cut))
    assert np.isclose(want, have, rtol=1e-4)


def test_the_same_command_again_has_nothing_to_do(inputs: IngestOptions, database: Path) -> None:
    before = (database / "CURRENT").stat().st_mtime_ns
    outcome = ingest(database, inputs)
    assert not outcome.fresh
    assert (database / "CURRENT").stat().st_mtime_ns == before


def test_another_command_on_a_finished_database_is_refused(
    inputs: IngestOptions, database: Path
) -> None:
    with pytest.raises(IngestError, match="already holds a database of other inputs"):
        ingest(database, replace(inputs, keep_bos=True))


@pytest.mark.parametrize("batches_before", [0, 1, 2, 4])
def test_interrupted_by_the_keyboard_it_continues_to_the_same_content(
    inputs: IngestOptions,
    tmp_path: Path,
    small_partitions: None,
    monkeypatch: pytest.MonkeyPatch,
    batches_before: int,
) -> None:
    ingest(tmp_path / "whole.fdb", inputs)
    calls = 0

    def interrupted(*args: Any) -> Iterator[Batch]:
        nonlocal calls
        for batch in batches(*args):
            calls += 1
            if calls > batches_before:
                raise KeyboardInterrupt
            yield batch

    path = tmp_path / "resumed.fdb"
    with monkeypatch.context() as patch:
        patch.setattr(partition, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest(path, inputs)
    with pytest.raises(DatabaseNotReadyError):
        read_snapshot(Layout(path))
    with pytest.raises(PlanMismatchError, match="keep BOS was False, is now True"):
        ingest(path, replace(inputs, keep_bos=True))
    ingest(path, inputs)
    assert_same_content(path, tmp_path / "whole.fdb")


@starts_processes
def test_killed_at_any_moment_it_continues_to_the_same_content(
    inputs: IngestOptions, tmp_path: Path
) -> None:
    """kill -9 after each stage: nothing lost, nothing doubled, no half-published snapshot."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(900))
    options = replace(inputs, corpus=str(corpus), memory="100MB")
    ingest(tmp_path / "whole.fdb", options)
    path = tmp_path / "killed.fdb"
    stages = ["corpus/0", "staging/plan.json", "staging/p000000.json", "segments/c000001-0",
              "derived/000001", "CURRENT"]  # fmt: skip
    for stage in stages:
        process = fork_server().Process(target=ingest, args=(path, options))
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and not (path / stage).exists():
            assert time.monotonic() < deadline, stage
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), stage
    ingest(path, options)
    assert_same_content(path, tmp_path / "whole.fdb")
    assert not (path / "staging").exists()


def test_more_contexts_than_a_segment_has_positions_for_become_several(
    inputs: IngestOptions,
    tmp_path: Path,
    small_partitions: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ingest(tmp_path / "one.fdb", inputs)
    monkeypatch.setattr(publish, "POSITIONS", 32 * 50)
    ingest(tmp_path / "several.fdb", inputs)
    assert len(read_snapshot(Layout(tmp_path / "several.fdb")).segments) > 1
    assert_same_content(tmp_path / "one.fdb", tmp_path / "several.fdb")


def test_two_writers(inputs: IngestOptions, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "locked.fdb")
    with (
        write_lock(layout, "a test"),
        pytest.raises(DatabaseLockedError, match=f"process {os.getpid()} .*a test"),
    ):
        ingest(layout.root, inputs)


def test_several_saes_share_one_forward_pass(
    inputs: IngestOptions, database: Path, tmp_path: Path
) -> None:
    other = tiny_sae(tmp_path / "other", d_sae=40, hook="blocks.0.hook_resid_post", seed=5)
    both = replace(inputs, saes=[*inputs.saes, str(other)], names=["sae", "other"])
    ingest(tmp_path / "two.fdb", both)
    assert activations(tmp_path / "two.fdb", "sae").equals(activations(database, "sae"))
    assert activations(tmp_path / "two.fdb", "other").num_rows > 0


def test_values_beyond_float16_are_kept_exactly(inputs: IngestOptions, tmp_path: Path) -> None:
    huge = tiny_sae(tmp_path / "huge", scale=3e6)
    ingest(tmp_path / "huge.fdb", replace(inputs, saes=[str(huge)]))
    got = activations(tmp_path / "huge.fdb", "sae").column("activation").to_numpy()
    assert (got > FLOAT16_MAX).any()
    assert (got <= FLOAT16_MAX).any()
    assert np.isfinite(got).all()
    small = got[got <= FLOAT16_MAX]
    assert (small == small.astype(np.float16)).all()
