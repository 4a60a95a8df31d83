"""Hooks read the model's values at a point, and nothing after the last hook runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featuredb.errors import HookError
from ingest.model.hooks import HookPoint, capture, forward_to_hooks, resolve_hook
from tests.ingest.families import CONFIGS, LAYERS, PARALLEL, VOCAB, WIDTH, build

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=list(CONFIGS))
def named_model(request: pytest.FixtureRequest) -> tuple[str, Any]:
    torch.set_num_threads(1)
    return request.param, build(request.param)


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    ids = torch.arange(3, 17).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def close(a: Tensor, b: Tensor, mask: Tensor) -> None:
    keep = mask.bool()
    assert a.shape == b.shape
    assert float((a[keep] - b[keep]).abs().max()) <= TOLERANCE


def test_residual_stream_is_hidden_states(
    named_model: tuple[str, Any], tokens: tuple[Tensor, Tensor]
) -> None:
    _, model = named_model
    ids, mask = tokens
    names = [f"blocks.{i}.hook_resid_{end}" for i in range(LAYERS) for end in ("pre", "post")]
    hooks = [resolve_hook(model, name) for name in names]
    got = forward_to_hooks(model, hooks, ids, mask)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for i in range(LAYERS):
        close(got[f"blocks.{i}.hook_resid_pre"], states[i], mask)
        if i + 1 < LAYERS:  # the last hidden state has passed the final norm
            close(got[f"blocks.{i}.hook_resid_post"], states[i + 1], mask)
    assert [hook.width for hook in hooks] == [WIDTH] * len(hooks)
    assert [hook.layer for hook in hooks] == [0, 0, 1, 1, 2, 2]


def test_embedding(named_model: tuple[str, Any], tokens: tuple[Tensor, Tensor]) -> None:
    name, model = named_model
    ids, mask = tokens
    hook = resolve_hook(model, "hook_embed")
    rows = model.get_input_embeddings().weight.detach()[ids]
    # Gemma scales its embeddings by the root of the width, ESM by the share that was not masked
    scale = WIDTH**0.5 if name.startswith("gemma") else {"granite": 3, "esm": 0.88}.get(name, 1.0)
    close(forward_to_hooks(model, [hook], ids, mask)["hook_embed"], rows * scale, mask)
    assert (hook.layer, hook.width) == (None, WIDTH)


def test_layers_after_the_last_hook_do_not_run(
    named_model: tuple[str, Any],
    tokens: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, model = named_model
    ids, mask = tokens
    layer = resolve_hook(model, "blocks.0.hook_resid_post").module
    layers = list(model.get_submodule(layer.rpartition(".")[0]))
    calls: list[nn.Module] = []

    def counted(module: nn.Module) -> None:
        forward = module.forward

        def count(*args: Any, **kwargs: Any) -> Any:
            calls.append(module)
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", count)

    for module in (*layers, model.get_output_embeddings()):
        counted(module)
    for name, expected in (
        ("blocks.0.hook_resid_pre", 0),
        ("blocks.0.hook_resid_post", 1),
        ("blocks.1.hook_attn_out", 2),
        ("blocks.2.hook_resid_pre", 2),
        ("blocks.2.hook_resid_post", 3),
    ):
        hook = resolve_hook(model, name)
        calls.clear()
        forward_to_hooks(model, [hook], ids, mask)
        assert calls == layers[:expected], name


def test_hooks_are_removed_and_reusable(tokens: tuple[Tensor, Tensor]) -> None:
    ids, mask = tokens
    model = build("llama")
    hooks = [resolve_hook(model, n) for n in ("blocks.1.hook_resid_post", "blocks.0.hook_mlp_out")]
    with capture(model, hooks) as forward:
        first, second = forward.run(ids, mask), forward.run(ids, mask)
    assert list(first) == [hook.name for hook in hooks]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(value.requires_grad for value in first.values())


@pytest.mark.parametrize(
    ("model_name", "spellings", "canonical"),
    [
        ("llama", ["model.layers.1", "layers.1", "model.layers.1.output"], "model.layers.1.output"),
        ("llama", ["layers.1.mlp", "model.layers.1.mlp"], "model.layers.1.mlp.output"),
        ("llama", ["layers.1.mlp.input"], "model.layers.1.mlp.input"),
        ("gpt2", ["transformer.h.1", "h.1", "blocks.1.hook_resid_post"], "transformer.h.1.output"),
        ("opt", ["model.decoder.layers.1", "decoder.layers.1"], "model.decoder.layers.1.output"),
        ("bert", ["encoder.layer.1.output"], "bert.encoder.layer.1.output.output"),
        ("bert", ["bert.encoder.layer.1"], "bert.encoder.layer.1.output"),
        ("gpt_neox", ["gpt_neox.layers.1", "layers.1"], "gpt_neox.layers.1.output"),
        (
            "gemma3_text",
            ["model.layers.1.self_attn.o_proj.input", "blocks.1.attn.hook_z"],
            "model.layers.1.self_attn.o_proj.input",
        ),
        (
            "gemma3_text",
            ["model.layers.1.post_feedforward_layernorm.output", "blocks.1.hook_mlp_out"],
            "model.layers.1.post_feedforward_layernorm.output",
        ),
    ],
)
def test_spellings_of_one_place(model_name: str, spellings: list[str], canonical: str) -> None:
    model = build(model_name)
    points = [resolve_hook(model, spelling) for spelling in spellings]
    assert {point.canonical for point in points} == {canonical}
    assert {point.layer for point in points} == {1}
    assert [point.name for point in points] == spellings


def test_base_model_without_head(tokens: tuple[Tensor, Tensor]) -> None:
    ids, mask = tokens
    model = build("llama")
    hook, bare = (resolve_hook(m, "blocks.1.hook_resid_post") for m in (model, model.model))
    assert (hook.module, bare.module) == ("model.layers.1", "layers.1")
    assert resolve_hook(model.model, "model.layers.1").module == "layers.1"
    whole = forward_to_hooks(model, [hook], ids, mask)[hook.name]
    assert torch.equal(whole, forward_to_hooks(model.model, [bare], ids, mask)[bare.name])


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("blocks.7.hook_resid_post", ["blocks.2.hook_resid_post", "0 to 2"]),
        ("blocks.1.hook_residpost", ["blocks.1.hook_resid_post"]),
        ("model.layers.1.mlpp", ["model.layers.1.mlp"]),
        ("nonsense", ["0 to 2"]),
        ("", ["0 to 2"]),
    ],
)
def test_unknown_hook_names_near_ones(name: str, mentions: list[str]) -> None:
    with pytest.raises(HookError) as caught:
        resolve_hook(build("llama"), name)
    message = str(caught.value)
    assert "\n" not in message
    assert all(mention in message for mention in mentions)


@pytest.mark.parametrize("name", sorted(PARALLEL))
def test_parallel_residual_has_no_middle(name: str) -> None:
    with pytest.raises(HookError, match="in parallel"):
        resolve_hook(build(name), "blocks.0.hook_resid_mid")


def test_a_module_that_never_runs(tokens: tuple[Tensor, Tensor]) -> None:
    model = build("llama")
    with pytest.raises(HookError, match="never reaches lm_head"):
        forward_to_hooks(model, [HookPoint("lm_head", "lm_head", "output", None, VOCAB)], *tokens)
    with pytest.raises(HookError, match="no hook"):
        forward_to_hooks(model, [], *tokens)
