"""Resumed passes: the logits of whole ones, bit for bit."""

from __future__ import annotations

import pytest
import torch

from featuredb.errors import ModelError
from featuredb.steering.forward import ResumedModel, adding
from tests.ingest.families import CONFIGS, LAYERS, VOCAB, WIDTH
from tests.steering.models import loaded

CAUSAL = [name for name in CONFIGS if name not in ("bert", "esm")]
SITES = ("blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.2.hook_resid_pre")


def _ids(rows: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCAB, (rows, tokens), generator=generator)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_resumed_pass_is_the_whole_one(name: str) -> None:
    model = loaded(name)
    ids = _ids(3, 7)
    last = model.hook(f"blocks.{LAYERS - 1}.hook_resid_post")
    for site in SITES:
        hook = model.hook(site)
        resumed = ResumedModel(model, [hook])
        whole = resumed.full(ids, [hook, last])
        again = resumed.resume(ids, whole.hidden, hooks=[last])
        assert torch.equal(again.logits, whole.logits), site
        assert torch.equal(again.logits, model.model(input_ids=ids, use_cache=False).logits), site
        assert torch.equal(again.values[last.name], whole.values[last.name]), site
        # The same with something added there.
        delta = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(2))
        with adding(model.model, hook, delta):
            dense = model.model(input_ids=ids, use_cache=False).logits
        steered = resumed.resume(ids, whole.hidden, add={hook: delta})
        assert torch.equal(steered.logits, dense), site
        assert not torch.equal(steered.logits, whole.logits), site
        assert resumed.start == (1 if "mlp" in site else 2)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_last_position_alone(name: str) -> None:
    """With the keys and values of what comes before, which all rows share."""
    model = loaded(name)
    hook = model.hook("blocks.1.hook_resid_post")
    resumed = ResumedModel(model, [hook])
    ids = _ids(1, 6)
    delta = torch.randn(4, 1, WIDTH, generator=torch.Generator().manual_seed(2))
    at_last = torch.cat([torch.zeros(4, 5, WIDTH), delta], dim=1)
    with adding(model.model, hook, at_last):
        dense = model.model(input_ids=ids.expand(4, 6), use_cache=False).logits[:, -1:]
    prefix = resumed.prefix(ids[:, :-1])
    if prefix is None:
        assert name.startswith("qwen3_"), "linear attention has a state of its own"
        return
    last = ids[:, -1:].expand(4, 1)
    whole = resumed.full(last, cache=prefix.for_rows(4), keep=1)
    steered = resumed.resume(last, whole.hidden, add={hook: delta}, cache=prefix.for_rows(4))
    assert torch.allclose(steered.logits, dense, atol=1e-5)
    # Bit for bit a whole pass of the same shapes.
    with adding(model.model, hook, delta):
        same = resumed.full(last, cache=prefix.for_rows(4)).logits
    assert torch.equal(steered.logits, same)
    assert resumed.resume(last, whole.hidden, cache=prefix.for_rows(4)).logits.equal(whole.logits)


def test_the_model_is_left_as_it_was() -> None:
    model = loaded("llama")
    hook = model.hook("blocks.1.hook_resid_post")
    resumed = ResumedModel(model, [hook])
    ids = _ids(1, 4)
    whole = resumed.full(ids)
    with pytest.raises(RuntimeError):
        resumed.resume(ids, whole.hidden, add={hook: torch.zeros(1, 1, 3)})
    assert torch.equal(resumed.full(ids).logits, whole.logits)


def test_a_model_without_next_tokens_is_refused() -> None:
    model = loaded("bert")
    with pytest.raises(ModelError, match="predicts no next token"):
        ResumedModel(model, [model.hook("blocks.1.hook_resid_post")])
