"""Overlapping batches and sorting elsewhere change nothing but the time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ingest.extract.in_order import in_order
from ingest.extract.overlap import batches_ahead, writers_beside
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from tests.content import assert_same_content
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_results_come_in_the_order_of_the_items(ahead: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.01 if item % 3 == 0 else 0)
        return item * item

    assert list(in_order(slow_first, range(10), ahead)) == [i * i for i in range(10)]
    assert list(in_order(slow_first, [], ahead)) == []


def test_items_are_under_way_together_and_never_more_than_asked_for() -> None:
    lock, busy, most = threading.Lock(), 0, 0
    met = threading.Barrier(2, timeout=10)

    def work(item: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        if item < 2:
            met.wait()
        with lock:
            busy -= 1
        return item

    assert list(in_order(work, range(8), 2)) == list(range(8))
    assert most == 2


def test_what_an_item_raises_is_raised_and_no_more_are_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    def items() -> Iterator[int]:
        yield from range(100)

    with pytest.raises(ValueError, match="one"):
        list(in_order(work, items(), 2))
    assert len(begun) <= 4


def test_a_cpu_has_nothing_to_overlap_and_a_gpu_has() -> None:
    assert batches_ahead(torch.device("cpu")) == 0
    assert batches_ahead(torch.device("cuda")) >= 2
    assert batches_ahead(torch.device("mps")) == 0, "a second thread there aborts the process"
    assert writers_beside(torch.device("cpu")) == 1
    assert 1 <= writers_beside(torch.device("cuda")) <= max(1, (os.cpu_count() or 1) - 1)


def test_overlapped_batches_make_the_same_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = IngestOptions(
        corpus=str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(120))),
        model=str(tiny_model(tmp_path / "model")),
        saes=[str(tiny_sae(tmp_path / f"sae{n}", seed=n)) for n in range(3)],
        dtype="float32",
        batch_tokens=128,
        check=False,
    )
    monkeypatch.setattr("ingest.prepare.partition_tokens", lambda *_: 512)
    ingest(tmp_path / "one.fdb", options)
    monkeypatch.setattr("ingest.extract.partition.batches_ahead", lambda _: 3)
    monkeypatch.setattr("ingest.engines.local.writers_beside", lambda _: 4)
    ingest(tmp_path / "overlapped.fdb", options)
    assert_same_content(tmp_path / "overlapped.fdb", tmp_path / "one.fdb")
