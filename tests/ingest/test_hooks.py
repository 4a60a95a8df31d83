"""Hooks read what the model computes at a place, and nothing after the last of them runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from featuredb.errors import HookError
from ingest.model.hooks import HookPoint, capture, forward_to_hooks, resolve_hook
from ingest.model.hooks.families import FAMILIES

LAYERS, WIDTH, HEADS, VOCAB = 3, 32, 4, 64
TOLERANCE = 1e-5

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {**_SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# name -> (config class, its arguments). Heads of 12 make the width of hook_z, 48, differ.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_GATED, "head_dim": 12}),
    "mistral": ("MistralConfig", {**_GATED, "head_dim": 12}),
    "qwen2": ("Qwen2Config", _GATED),
    "qwen3": ("Qwen3Config", {**_GATED, "head_dim": 12}),
    "gemma2": ("Gemma2Config", {**_GATED, "head_dim": 12}),
    "gemma3": ("Gemma3TextConfig", {**_GATED, "head_dim": 12}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_neox": ("GPTNeoXConfig", {**_SMALL, "intermediate_size": 48}),
    "gpt_neox_serial": (
        "GPTNeoXConfig",
        {**_SMALL, "intermediate_size": 48, "use_parallel_residual": False},
    ),
    "opt": ("OPTConfig", {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
    "opt_post_norm": (
        "OPTConfig",
        {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": False},
    ),
    "phi": ("PhiConfig", {**_SMALL, "intermediate_size": 48}),
    "bert": ("BertConfig", {**_SMALL, "intermediate_size": 48}),
}
POST_NORM = {"bert", "opt_post_norm"}  # a norm follows each addition
PARALLEL = {"gpt_neox", "phi"}
RMS = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"}


def build(name: str) -> Any:
    kind, arguments = CONFIGS[name]
    config = getattr(transformers, kind)(**arguments)
    torch.manual_seed(0)
    auto = (
        transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    )
    model = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of ones would hide a missing weight
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


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


def spied(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Every module's first input and first output in a full forward pass, by module path."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(path: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            result = output[0] if isinstance(output, tuple) else output
            if given and isinstance(result, Tensor):
                seen.setdefault(path, (given[0], result))

        return look

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    return seen


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


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in POST_NORM])
def test_stream_is_the_sum_of_its_parts(name: str, tokens: tuple[Tensor, Tensor]) -> None:
    model = build(name)
    ids, mask = tokens
    names = [
        f"blocks.1.{what}"
        for what in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    ]
    pre, attn, mlp, post = forward_to_hooks(
        model, [resolve_hook(model, n) for n in names], ids, mask
    ).values()
    close(pre + attn + mlp, post, mask)
    if name not in PARALLEL:
        mid = resolve_hook(model, "blocks.1.hook_resid_mid")
        close(forward_to_hooks(model, [mid], ids, mask)[mid.name], pre + attn, mask)


@pytest.mark.parametrize(
    ("name", "layer_path", "after_attention", "after_mlp"),
    [
        ("bert", "bert.encoder.layer.1", "attention.output.LayerNorm", "output.LayerNorm"),
        ("opt_post_norm", "model.decoder.layers.1", "self_attn_layer_norm", "final_layer_norm"),
    ],
)
def test_post_norm_stream(
    tokens: tuple[Tensor, Tensor],
    name: str,
    layer_path: str,
    after_attention: str,
    after_mlp: str,
) -> None:
    ids, mask = tokens
    model = build(name)
    names = ["hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]
    pre, attn, mid, mlp, post = forward_to_hooks(
        model, [resolve_hook(model, f"blocks.1.{n}") for n in names], ids, mask
    ).values()
    layer = model.get_submodule(layer_path)
    with torch.no_grad():
        close(layer.get_submodule(after_attention)(pre + attn), mid, mask)
        close(layer.get_submodule(after_mlp)(mid + mlp), post, mask)


def test_hand_placed_hooks(named_model: tuple[str, Any], tokens: tuple[Tensor, Tensor]) -> None:
    name, model = named_model
    ids, mask = tokens
    seen = spied(model, ids, mask)
    family = FAMILIES[model.config.model_type]
    out_projection = next(
        path
        for path in seen
        if path.endswith(f"1.{family.hook_z.removesuffix('.input')}") and "2." not in path
    )
    z = resolve_hook(model, "blocks.1.attn.hook_z")
    post = resolve_hook(model, "blocks.1.mlp.hook_post")
    norms = [resolve_hook(model, f"blocks.1.{ln}.hook_normalized") for ln in ("ln1", "ln2")]
    got = forward_to_hooks(model, [z, post, *norms], ids, mask)
    close(got[z.name], seen[out_projection][0], mask)
    assert z.width == got[z.name].shape[-1]
    assert post.width == got[post.name].shape[-1] == (48 if name != "gpt2" else 128)
    for norm in norms:
        given, result = seen[norm.module]
        expected = (
            given * torch.rsqrt(given.pow(2).mean(-1, keepdim=True) + 1e-6)
            if name in RMS
            else result
        )
        close(got[norm.name], expected.reshape(*ids.shape, WIDTH), mask)
        assert norm.width == WIDTH


def test_embedding(named_model: tuple[str, Any], tokens: tuple[Tensor, Tensor]) -> None:
    name, model = named_model
    ids, mask = tokens
    hook = resolve_hook(model, "hook_embed")
    rows = model.get_input_embeddings().weight.detach()[ids]
    # Gemma scales its embeddings by the root of the width
    scale = WIDTH**0.5 if name.startswith("gemma") else 1.0
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
            "gemma3",
            ["model.layers.1.self_attn.o_proj.input", "blocks.1.attn.hook_z"],
            "model.layers.1.self_attn.o_proj.input",
        ),
        (
            "gemma3",
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


def test_architecture_outside_the_table(tokens: tuple[Tensor, Tensor]) -> None:
    ids, mask = tokens
    config = transformers.Olmo2Config(**_GATED)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(HookError, match=r"model\.layers\.2"):
        resolve_hook(model, "blocks.0.hook_resid_post")
    hook = resolve_hook(model, "layers.1")
    assert (hook.layer, hook.width) == (1, WIDTH)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    close(forward_to_hooks(model, [hook], ids, mask)["layers.1"], states[2], mask)


def test_a_module_that_never_runs(tokens: tuple[Tensor, Tensor]) -> None:
    model = build("llama")
    with pytest.raises(HookError, match="never reaches lm_head"):
        forward_to_hooks(model, [HookPoint("lm_head", "lm_head", "output", None, VOCAB)], *tokens)
    with pytest.raises(HookError, match="no hook"):
        forward_to_hooks(model, [], *tokens)
