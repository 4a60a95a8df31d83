"""A device that runs out of memory gets half, and the content stays the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featuredb.errors import ModelError
from ingest.extract import forward as extract
from ingest.extract.batches import Batch, batches
from ingest.extract.device import DeviceMemory
from ingest.model.hooks import forward_to_hooks
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from tests.content import activations
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture
def options(tmp_path: Path) -> IngestOptions:
    return IngestOptions(
        corpus=str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents())),
        model=str(tiny_model(tmp_path / "model")),
        saes=[str(tiny_sae(tmp_path / "sae"))],
        names=["sae"],
        dtype="float32",
        check=False,
    )


def only(monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception) -> list[int]:
    """Let forward passes of more than `tokens` tokens fail. Gives the sizes of all of them."""
    sizes: list[int] = []

    def limited(model: object, hooks: object, ids: torch.Tensor, mask: object) -> object:
        sizes.append(ids.numel())
        if ids.numel() > tokens:
            raise error
        return forward_to_hooks(model, hooks, ids, mask)  # type: ignore[arg-type]

    monkeypatch.setattr(extract, "forward_to_hooks", limited)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_batches_are_halved_and_the_content_is_the_same(
    options: IngestOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    ingest(tmp_path / "whole.fdb", options)
    sizes = only(monkeypatch, 600, error)
    ingest(tmp_path / "halved.fdb", replace(options, progress=True))
    failed = [size for size in sizes if size > 600]
    assert 2 <= len(failed) <= 6, "the limit is remembered from batch to batch"
    assert "the device ran out of memory with " in capsys.readouterr().err
    whole, halved = (activations(tmp_path / f"{n}.fdb", "sae") for n in ("whole", "halved"))
    assert abs(whole.num_rows - halved.num_rows) <= 2
    if whole.num_rows == halved.num_rows:
        assert whole.select([0, 1, 2]).equals(halved.select([0, 1, 2]))
    one, other = (t.column("activation").to_numpy().sum() for t in (whole, halved))
    assert np.isclose(one, other, rtol=1e-5)


def test_a_single_context_that_does_not_fit(
    options: IngestOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, 10, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(
        ModelError, match=r"one context of \d+ tokens: give a smaller --context-siz"
    ):
        ingest(tmp_path / "db.fdb", options)
    assert not (tmp_path / "db.fdb").exists()


def test_other_errors_are_not_taken_for_it(
    options: IngestOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, 10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        ingest(tmp_path / "db.fdb", options)


def test_every_row_comes_back_once_in_order() -> None:
    starts = np.array([0, 9, 12, 20, 21, 27])
    (batch,) = batches(np.arange(27, dtype=np.uint16), starts, 1_000)
    notes: list[str] = []

    def work(part: Batch) -> list[int]:
        if part.token_ids.size > 9:
            raise torch.OutOfMemoryError
        assert part.token_ids.shape == (len(part.contexts), part.lengths.max())
        return [int(row[0]) for row in part.token_ids]

    memory = DeviceMemory(1_000, notes.append)
    found = [(c, first) for part, firsts in memory.run(work, batch)
             for c, first in zip(part.contexts.tolist(), firsts, strict=True)]  # fmt: skip
    assert [c for c, _ in found] == batch.contexts.tolist()
    assert all(first == starts[c] for c, first in found)
    assert len(notes) >= 2
    assert memory.batch_tokens <= 12
