"""SAEs of TransformerLens's processed GPT-2 read the plain model right, hook by hook.

The right values come from a copy of the model whose weights are centered by hand.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featuredb.errors import SaeError
from ingest.model.hooks import forward_to_hooks, resolve_hook
from ingest.model.load import LoadedModel
from ingest.sae import LoadedSae, load_sae
from ingest.sae.centered_weights import on_plain_weights
from tests.ingest.families import WIDTH, build
from tests.ingest.sae_files import arrays, safetensors, tensors, torch_file

F = 40
torch.set_num_threads(1)

CENTERED = {"center_writing_weights": True}
IDS = torch.arange(3, 17).reshape(2, 7)


def loaded(model: Any) -> LoadedModel:
    config = model.config
    return LoadedModel(
        model=model,
        tokenizer=None,
        id="m",
        revision=None,
        path=Path("m"),
        weights_hash="",
        tokenizer_hash="",
        dtype=torch.float32,
        device=torch.device("cpu"),
        d_model=config.hidden_size,
        n_layers=3,
        vocab_size=config.vocab_size,
        context_length=64,
        architecture=type(model).__name__,
    )


def at(model: Any, name: str) -> Tensor:
    """What passes `name` in a forward pass, positions flattened."""
    point = resolve_hook(model, name)
    values = forward_to_hooks(model, [point], IDS, torch.ones_like(IDS))[point.name]
    return values.reshape(-1, values.shape[-1])


def sae(folder: Path, hook: str, width: int = WIDTH, **cfg: Any) -> LoadedSae:
    w = arrays(W_enc=(width, F), b_enc=(F,), W_dec=(F, width), b_dec=(width,))
    metadata = {"hook_name": hook, "model_from_pretrained_kwargs": CENTERED}
    whole = {"architecture": "standard", "d_in": width, "d_sae": F, "metadata": metadata, **cfg}
    return load_sae(safetensors(folder / "sae_weights.safetensors", w, cfg=whole).parent)


def encoded(reader: LoadedSae, x: Tensor) -> Tensor:
    """relu((x - b_dec) W_enc + b_enc) of the SAE's own weights, for an input that is right."""
    w = {name: t.double() for name, t in tensors(arrays(
        W_enc=(x.shape[1], F), b_enc=(F,), W_dec=(F, x.shape[1]), b_dec=(x.shape[1],)
    )).items()}  # fmt: skip
    return torch.relu((x.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).float()


def hand_centered(plain: Any) -> Any:
    """A GPT-2 whose every write to the stream is centered and whose value biases are folded."""
    model = copy.deepcopy(plain)
    with torch.no_grad():
        for table in (model.transformer.wte, model.transformer.wpe):
            table.weight -= table.weight.mean(dim=1, keepdim=True)
        for layer in model.transformer.h:
            values = layer.attn.c_attn.bias[-WIDTH:]
            layer.attn.c_proj.bias += values @ layer.attn.c_proj.weight
            values.zero_()
            for into in (layer.attn.c_proj, layer.mlp.c_proj):
                into.weight -= into.weight.mean(dim=1, keepdim=True)
                into.bias -= into.bias.mean()
    return model


HOOKS = [
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_mid",
    "blocks.2.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
    "blocks.1.attn.hook_z",
    "blocks.2.mlp.hook_post",
    "transformer.h.1",
    "transformer.h.1.attn.c_proj.input",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_gpt2(tmp_path: Path, hook: str) -> None:
    plain = build("gpt2")
    centered = hand_centered(plain)
    x, right = at(plain, hook), at(centered, hook)
    reader = sae(tmp_path, hook, x.shape[1])
    model = loaded(plain)
    ready = on_plain_weights(reader, model, model.hook(hook))
    acts = encoded(reader, right)
    assert 0 < int((acts != 0).sum()) < acts.numel()
    torch.testing.assert_close(ready.encode(x), acts, atol=1e-4, rtol=1e-4)
    # the reconstruction is of x, and what it misses is what the SAE misses of the centered value
    missing = reader.decoder.reconstruct(acts, torch.zeros_like(x)) - right
    torch.testing.assert_close(ready.decode(acts, x) - x, missing, atol=1e-3, rtol=1e-3)
    if "mlp.hook_post" not in hook:
        assert float((x - right).abs().max()) > 0.01
    assert ready.processed_weights is False


def test_a_hook_that_the_user_gives_decides(tmp_path: Path) -> None:
    """The file says the stream; --hook says hook_z."""
    plain = build("gpt2")
    model, hook = loaded(plain), "blocks.1.attn.hook_z"
    reader = sae(tmp_path, "blocks.1.hook_resid_pre")
    ready = on_plain_weights(reader, model, model.hook(hook))
    right = at(hand_centered(plain), hook)
    torch.testing.assert_close(
        ready.encode(at(plain, hook)), encoded(reader, right), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["gpt_neox", "opt", "phi", "gpt_neo", "gptj"])
def test_value_biases_of_other_families(tmp_path: Path, name: str) -> None:
    """z of layer 0 in a copy that has none: its input is the same."""
    plain = build(name)
    bare = copy.deepcopy(plain)
    hook = "blocks.0.attn.hook_z"
    attention = bare.get_submodule(resolve_hook(bare, hook).module.rpartition(".")[0])
    with torch.no_grad():
        for part, module in attention.named_modules():
            bias = getattr(module, "bias", None)
            if part.endswith("v_proj") and bias is not None:
                bias.zero_()
            if part.endswith("query_key_value") and bias is not None:
                bias.view(4, 3, -1)[:, 2] = 0
    x, right = at(plain, hook), at(bare, hook)
    reader = sae(tmp_path, hook, x.shape[1])
    model = loaded(plain)
    ready = on_plain_weights(reader, model, model.hook(hook))
    torch.testing.assert_close(ready.encode(x), encoded(reader, right), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "olmo2", "bert"])
def test_other_norms_are_refused(tmp_path: Path, name: str) -> None:
    model = loaded(build(name))
    hook = model.hook("blocks.1.hook_resid_post")
    with pytest.raises(SaeError, match="center_writing_weights"):
        on_plain_weights(sae(tmp_path, hook.name), model, hook)


@pytest.mark.parametrize("hook", ["blocks.1.ln2.hook_normalized", "transformer.h.1.ln_1"])
def test_places_behind_a_norm_are_refused(tmp_path: Path, hook: str) -> None:
    model = loaded(build("gpt2"))
    with pytest.raises(SaeError, match="is not known"):
        on_plain_weights(sae(tmp_path, hook), model, model.hook(hook))


@pytest.mark.parametrize(
    ("cfg", "kind"),
    [
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"reshape_activations": "none"}, "center"),
        ({"model_from_pretrained_kwargs": CENTERED, "metadata": {"hook_name": "h"}}, "center"),
        ({"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": False}}}, "none"),
        ({"metadata": {"model_from_pretrained_kwargs": None}}, "none"),
        ({"metadata": {}}, "none"),
    ],
)  # fmt: skip
def test_where_the_key_stands(tmp_path: Path, cfg: dict[str, Any], kind: str) -> None:
    assert sae(tmp_path, "blocks.1.hook_resid_pre", **cfg).encoder.normalization == kind


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        (CENTERED, True),
        ({**CENTERED, "fold_value_biases": False}, False),
        ({"fold_value_biases": True}, True),
        ({}, False),
    ],
)
def test_when_value_biases_are_folded(
    tmp_path: Path, options: dict[str, Any], folded: bool
) -> None:
    metadata = {"hook_name": "blocks.1.attn.hook_z", "model_from_pretrained_kwargs": options}
    reader = sae(tmp_path, "", metadata=metadata)
    assert (reader.processed_weights, reader.encoder.normalization) == (folded, "none")


def test_the_scale_of_the_data_set_comes_after_the_mean(tmp_path: Path) -> None:
    s, x = 0.31, torch.randn(9, WIDTH) + 2
    options: dict[str, Any] = {
        "normalize_activations": "expected_average_only_in",
        "norm_scaling_factor": s,
    }
    reader = sae(tmp_path, "blocks.1.hook_resid_pre", **options)
    centered = x - x.mean(dim=1, keepdim=True)
    right = encoded(reader, s * centered)
    torch.testing.assert_close(reader.encode(x), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
        (
            {"model_from_pretrained_kwargs": {"refactor_factored_attn_matrices": True}},
            "refactor_factored",
        ),
        (
            {
                "metadata": {
                    "hook_name": "blocks.1.ln2.hook_normalized",
                    "model_from_pretrained_kwargs": {"fold_ln": True},
                }
            },
            "fold_ln",
        ),
    ],
)
def test_refusals(tmp_path: Path, cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(SaeError, match=words):
        sae(tmp_path, "blocks.1.hook_resid_pre", **cfg)


def test_flat_configuration(tmp_path: Path) -> None:
    w = arrays(W_enc=(WIDTH, F), b_enc=(F,), W_dec=(F, WIDTH), b_dec=(WIDTH,))
    cfg = {"d_in": WIDTH, "d_sae": F, "hook_point": "blocks.1.hook_resid_pre"}
    asked = {**cfg, "model_from_pretrained_kwargs": CENTERED}
    folder = safetensors(
        tmp_path / "sae_weights.safetensors", w, cfg=asked
    ).parent  # fmt: skip
    assert load_sae(folder).encoder.normalization == "center"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    assert load_sae(folder).encoder.normalization == "none"


def test_kissane_on_a_model(tmp_path: Path) -> None:
    plain = build("gpt2")
    hook = "blocks.2.attn.hook_z"
    w = arrays(W_enc=(WIDTH, F), b_enc=(F,), W_dec=(F, WIDTH), b_dec=(WIDTH,))
    reader = load_sae(torch_file(tmp_path / "a_v9.pt", tensors(w), a_v9_cfg={"act_name": hook}))
    model = loaded(plain)
    ready = on_plain_weights(reader, model, model.hook(hook))
    right = at(hand_centered(plain), hook)
    torch.testing.assert_close(
        ready.encode(at(plain, hook)), encoded(reader, right), atol=1e-4, rtol=1e-4
    )
