"""Without a mask over padding a causal model gives the same bits, and others keep theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ingest.extract.batches import Batch
from ingest.extract.forward import forward
from ingest.model.hooks import forward_to_hooks, resolve_hook
from ingest.model.load import LoadedModel
from tests.ingest.families import CONFIGS, EXPERTS, LAYERS, VOCAB, WIDTH, build

LOOKS_AHEAD = {"bert", "esm"}


def lone_model(name: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A tiny model of a family, without files or tokenizer."""
    model = build(name).to(dtype).requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=None,
        id=name,
        revision=None,
        path=Path(),
        weights_hash="",
        tokenizer_hash="",
        dtype=dtype,
        device=torch.device("cpu"),
        d_model=WIDTH,
        n_layers=LAYERS,
        vocab_size=VOCAB,
        context_length=64,
        architecture=type(model).__name__,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_real_tokens_are_the_same_bits(name: str, dtype: torch.dtype) -> None:
    model = lone_model(name, dtype)
    hooks = [resolve_hook(model.model, f"blocks.{n}.hook_resid_post") for n in (0, 2)]
    rng = np.random.default_rng(1)
    for lengths in ([48, 29], [64, 3, 64, 17, 40], [64, 63, 1]):
        ids = rng.integers(3, VOCAB, (len(lengths), max(lengths)))
        batch = Batch(np.arange(len(lengths)), np.array(lengths), ids)
        real = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        masked = forward_to_hooks(model.model, hooks, torch.from_numpy(ids), real.long())
        given = forward(model, hooks, batch)
        for hook in hooks:
            assert torch.equal(given[hook.name][real], masked[hook.name][real])
    experts = name in EXPERTS or name == "gemma4_experts"
    assert list(model.maskless.values()) == [name not in LOOKS_AHEAD and not experts]


def test_it_is_tried_once_for_each_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lone_model("llama")
    hook = resolve_hook(model.model, "blocks.0.hook_resid_post")
    masks: list[bool] = []

    def counted(*args: object) -> object:
        masks.append(args[3] is not None)
        return forward_to_hooks(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("ingest.extract.forward.forward_to_hooks", counted)
    ids = np.full((2, 5), 7)
    for lengths in ([5, 5], [5, 3], [4, 2]):
        forward(model, [hook], Batch(np.arange(2), np.array(lengths), ids[:, : lengths[0]]))
    assert masks == [False, *(False, False, True), False, False]
