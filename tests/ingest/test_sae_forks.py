"""Qwen-Scope, Kissane, Gemma Scope 2 without config.json, and forks that normalize the input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featuredb.errors import SaeError
from ingest.sae import LoadedSae, load_sae
from tests.ingest.sae_files import (
    Array,
    arrays,
    check,
    inputs,
    relu,
    rounded,
    safetensors,
    tensors,
    top,
    torch_file,
)

D, F, K = 8, 40, 5
torch.set_num_threads(1)

LINEAR: dict[str, tuple[int, ...]] = {
    "encoder.weight": (F, D),
    "encoder.bias": (F,),
    "decoder.weight": (D, F),
}


# --- Qwen-Scope ------------------------------------------------------------------------------


def qwen(
    folder: Path, layer: int = 3, width: int = 1024, dtype: torch.dtype = torch.float32
) -> tuple[Path, dict[str, Array]]:
    w = arrays(W_enc=(width, D), b_enc=(width,), W_dec=(D, width), b_dec=(D,))
    w["b_enc"] -= 3
    content = {name: value.to(dtype) for name, value in tensors(w).items()}
    return torch_file(folder / f"layer{layer}.sae.pt", content), rounded(w, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("named", "layer", "width", "k", "model"),
    [
        ("SAE-Res-Qwen3-1.7B-Base-W1K-L0_4", 3, 1024, 4, "Qwen/Qwen3-1.7B-Base"),
        ("SAE-Res-Qwen3.5-27B-W2K-L0_100", 41, 2048, 100, "Qwen/Qwen3.5-27B"),
    ],
)
def test_qwen_scope(
    tmp_path: Path, named: str, layer: int, width: int, k: int, model: str, dtype: torch.dtype
) -> None:
    file, w = qwen(tmp_path / "Qwen" / named, layer, width, dtype)
    x = inputs(D)
    x[0] *= 0.01  # all but b_enc alone
    z = x @ w["W_enc"].T + w["b_enc"]
    acts = top(z, k)
    assert (acts[0] < 0).any()
    for path in (file, file.parent):
        sae = load_sae(path)
        check(sae, x, acts, acts @ w["W_dec"].T + w["b_dec"])
        assert (sae.hook, sae.hook_out, sae.prepend_bos) == (f"model.layers.{layer}", None, None)
        assert (sae.stated_l0, sae.model_name) == (k, model)


def test_qwen_scope_in_a_hub_cache(tmp_path: Path) -> None:
    named = "models--Qwen--SAE-Res-Qwen3-8B-Base-W1K-L0_50/snapshots/abc"
    assert load_sae(qwen(tmp_path / named)[0]).stated_l0 == 50


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("elsewhere", "k is in the name of its folder"),
        ("SAE-Res-Qwen3-8B-Base-W64K-L0_50", "W64K makes d_sae 65536"),
        ("SAE-Res-Qwen3-8B-Base-W1K-L0_0", "k is 0"),
    ],
)
def test_qwen_scope_refusals(tmp_path: Path, named: str, words: str) -> None:
    with pytest.raises(SaeError, match=words):
        load_sae(qwen(tmp_path / named)[0])


# --- Kissane ---------------------------------------------------------------------------------


def kissane(folder: Path, **cfg: Any) -> tuple[LoadedSae, dict[str, Array]]:
    w = arrays(W_enc=(D, F), b_enc=(F,), W_dec=(F, D), b_dec=(D,))
    whole = {"act_size": D, "dict_size": F, "act_name": "blocks.5.attn.hook_z", **cfg}
    named = "gpt2-small_L5_v9"
    return load_sae(torch_file(folder / f"{named}.pt", tensors(w), **{f"{named}_cfg": whole})), w


def test_kissane_reads_heads_without_the_value_bias(tmp_path: Path) -> None:
    sae, w = kissane(tmp_path, model_name="gpt2-small", seq_len=128)
    x, b_V = inputs(D), np.linspace(-1, 2, D)
    acts = relu((x - b_V - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    known = sae.without_value_bias(torch.from_numpy(b_V).float())
    check(known, x, acts, acts @ w["W_dec"] + w["b_dec"] + b_V)
    assert (sae.hook, sae.model_name) == ("blocks.5.attn.hook_z", "gpt2-small")
    assert sae.context_size == 128
    for call in (sae.encode, sae.encode_sparse):
        with pytest.raises(SaeError, match="value biases"):
            call(torch.zeros(2, D))
    with pytest.raises(SaeError, match="value biases"):
        sae.decode(torch.zeros(2, F))


def test_kissane_without_its_configuration(tmp_path: Path) -> None:
    kissane(tmp_path)
    (tmp_path / "gpt2-small_L5_v9_cfg.json").unlink()
    with pytest.raises(SaeError, match=r"_cfg\.json is missing beside .* Kissane"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"act_size": 7}, "act_size"),
        ({"remove_rare_dir": True}, "remove_rare_dir"),
        ({"act_name": None}, "act_name"),
    ],
)
def test_kissane_refusals(tmp_path: Path, cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(SaeError, match=words):
        kissane(tmp_path, **cfg)


# --- Gemma Scope 2 ---------------------------------------------------------------------------

BEFORE, AFTER = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"


@pytest.mark.parametrize(
    ("inside", "hook", "hook_out", "model"),
    [
        (
            "gemma-scope-2-1b-pt/resid_post/layer_22_width_16k_l0_small",
            "model.layers.22.output",
            None,
            "google/gemma-3-1b-pt",
        ),
        (
            "gemma-scope-2-270m-pt/resid_post_all/layer_0_width_16k_l0_big",
            "model.layers.0.output",
            None,
            "google/gemma-3-270m",
        ),
        (
            "gemma-scope-2-27b-it/attn_out/layer_40_width_65k_l0_medium",
            "model.layers.40.self_attn.o_proj.input",
            None,
            "google/gemma-3-27b-it",
        ),
        (
            "gemma-scope-2-4b-it/mlp_out_all/layer_9_width_16k_l0_big",
            f"model.layers.9.{AFTER}",
            None,
            "google/gemma-3-4b-it",
        ),
        (
            "gemma-scope-2-270m-it/transcoder_all/layer_5_width_16k_l0_small_affine",
            f"model.layers.5.{BEFORE}",
            f"model.layers.5.{AFTER}",
            "google/gemma-3-270m-it",
        ),
        ("renamed/layer_5_width_16k_l0_small", None, None, None),
    ],
)
def test_gemma_scope_2_without_config(
    tmp_path: Path, inside: str, hook: str | None, hook_out: str | None, model: str | None
) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "w_enc": (D, F), "b_enc": (F,), "w_dec": (F, D), "b_dec": (D,), "threshold": (F,),
    }  # fmt: skip
    affine = inside.endswith("affine")
    w = arrays(**shapes, **({"affine_skip_connection": (D, D)} if affine else {}))
    folder = tmp_path / "google" / inside
    safetensors(folder / "params.safetensors", w)
    safetensors(folder / "examples.safetensors", arrays(activations=(F, 10)))
    sae, x = load_sae(folder), inputs(D)
    z = x @ w["w_enc"] + w["b_enc"]
    acts = z * (z > np.maximum(w["threshold"], 0))
    skip = x @ w["affine_skip_connection"] if affine else 0.0
    check(sae, x, acts, acts @ w["w_dec"] + w["b_dec"] + skip)
    assert (sae.hook, sae.hook_out, sae.model_name) == (hook, hook_out, model)
    assert sae.stated_l0 is None


# --- science-of-finetuning, InterPLM ---------------------------------------------------------


def finetuning(
    folder: Path, *, mean: Any, std: Any, scale: float, rms: float = 1.0, **options: Any
) -> tuple[LoadedSae, dict[str, Array]]:
    """As `BatchTopKSAE` is saved: by the trainer, or with hub=True by the hub's mixin."""
    w = arrays(**LINEAR, b_dec=(D,))
    content = {
        **tensors(w),
        "k": torch.tensor(K, dtype=torch.int32),
        "threshold": torch.tensor(0.3),
        "target_rms": torch.tensor(rms),
        "activation_mean": torch.as_tensor(mean).float(),
        "activation_std": torch.as_tensor(std).float(),
        "activation_global_scale": torch.tensor(scale).float(),
    }
    if options.pop("compiled", False):
        content = {
            name.replace("encoder.", "encoder._orig_mod."): value for name, value in content.items()
        }
        content = {f"_orig_mod.{name}": value for name, value in content.items()}
    about = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": F, "k": K}
    if options.pop("hub", False):
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(content, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**about, **options}))
    else:
        trainer = {**about, "submodule_name": "resid_post_layer_13", **options}
        torch_file(folder / "model_final.pt", content, config={"trainer": trainer})
    return load_sae(folder), w


MEAN, STD = np.linspace(-2, 3, D), np.geomspace(0.1, 5, D)
G = 2.5 / np.sqrt((STD**2).sum() + 1e-8)


def expected(w: dict[str, Array], x: Array, mean: Any, g: Any, back: Any) -> tuple[Array, Array]:
    z = ((x - mean) * g - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    acts = relu(z) * (relu(z) > 0.3)
    return acts, (acts @ w["decoder.weight"].T + w["b_dec"]) * back + mean


@pytest.mark.parametrize("how", ["trainer", "hub", "compiled"])
def test_finetuning_normalized(tmp_path: Path, how: str) -> None:
    options = {} if how == "trainer" else {how: True}
    sae, w = finetuning(tmp_path / "run", mean=MEAN, std=STD, scale=G, rms=2.5, **options)
    x = inputs(D)
    check(sae, x, *expected(w, x, MEAN, G, 1 / (G + 1e-8)))
    assert (sae.architecture, sae.stated_l0) == ("BatchTopKSAE", K)
    assert sae.hook == (None if how == "hub" else "blocks.13.hook_resid_post")


def test_finetuning_per_dimension(tmp_path: Path) -> None:
    """A scale of 1 means either: the configuration has to say which."""
    options: dict[str, Any] = {"mean": MEAN, "std": STD, "scale": 1.0}
    with pytest.raises(SaeError, match="keep_relative_variance"):
        finetuning(tmp_path / "unsaid", **options)
    sae, w = finetuning(tmp_path / "run", **options, keep_relative_variance=False)
    x = inputs(D)
    check(sae, x, *expected(w, x, MEAN, 1 / (STD + 1e-8), STD + 1e-8))
    sae, w = finetuning(tmp_path / "whole", **options, keep_relative_variance=True)
    check(sae, x, *expected(w, x, MEAN, 1.0, 1 / (1 + 1e-8)))


@pytest.mark.parametrize("which", ["mean", "std"])
def test_finetuning_nan_statistics_mean_none(tmp_path: Path, which: str) -> None:
    statistics: dict[str, Any] = {"mean": MEAN, "std": STD, which: np.full(D, np.nan)}
    sae, w = finetuning(tmp_path / "run", **statistics, scale=1.0)
    x = inputs(D)
    check(sae, x, *expected(w, x, 0.0, 1.0, 1.0))


@pytest.mark.parametrize("name", ["ae.pt", "ae_normalized.pt", "ae_unnormalized.pt"])
@pytest.mark.parametrize("flag", [True, False])
def test_interplm(tmp_path: Path, flag: bool, name: str) -> None:
    w = arrays(**LINEAR, bias=(D,))
    extra = {
        "normalize_to_sqrt_d": torch.tensor(flag),
        "activation_rescale_factor": torch.full((F,), 7.0),
    }
    sae = load_sae(torch_file(tmp_path / "layer_24" / name, {**tensors(w), **extra}))
    x = inputs(D)
    s = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True) if flag else 1.0
    acts = relu((s * x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"])
    check(sae, x, acts, (acts @ w["decoder.weight"].T + w["bias"]) / s)


def test_interplm_before_the_flag(tmp_path: Path) -> None:
    """The display factor alone does no harm. A training configuration that normalizes does."""
    w = arrays(**LINEAR, bias=(D,))
    content = {**tensors(w), "activation_rescale_factor": torch.full((F,), 7.0)}
    file, x = torch_file(tmp_path / "ae_normalized.pt", content), inputs(D)
    config = tmp_path / "config.yaml"
    config.write_text("trainer_cfg:\n  normalize_to_sqrt_d: false\n")
    acts = relu((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"])
    check(load_sae(file), x, acts, acts @ w["decoder.weight"].T + w["bias"])
    config.write_text("trainer_cfg:\n  normalize_to_sqrt_d: true\n")
    with pytest.raises(SaeError, match="normalize_to_sqrt_d"):
        load_sae(file)


# --- clt-training ----------------------------------------------------------------------------


def clt_training(folder: Path, *names: str, **cfg: Any) -> tuple[LoadedSae, dict[str, Array]]:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,),
    }  # fmt: skip
    more = {"W_skip": (D, D), "post_enc": (F,), "post_enc_scale": (F,)}
    w = arrays(**shapes, **{name: more[name] for name in names})
    saved = {**w, "in_norm": np.array([13.0]), "out_norm": np.array([3.7])}
    whole = {"d_in": D, "num_latents": F, "k": K, "normalize_io": True, "n_targets": 0, **cfg}
    if not whole["normalize_io"]:
        saved = w
    file = safetensors(folder / "layers.5.mlp" / "sae.safetensors", saved, cfg=whole)
    return load_sae(file.parent), w


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize(
    "names",
    [(), ("post_enc",), ("post_enc", "post_enc_scale"), ("W_skip", "post_enc", "post_enc_scale")],
)
def test_clt_training(tmp_path: Path, transcode: bool, names: tuple[str, ...]) -> None:
    sae, w = clt_training(tmp_path, *names, transcode=transcode, skip_connection="W_skip" in names)
    x, root = inputs(D), np.sqrt(D)
    normed = x * root / 13.0
    centered = normed if transcode else normed - w["b_dec"]
    acts = top(relu(centered @ w["encoder.weight"].T + w["encoder.bias"]), K)
    a = (acts + w.get("post_enc", np.zeros(F)) * (acts > 0)) * w.get("post_enc_scale", np.ones(F))
    skip = normed @ w["W_skip"].T if "W_skip" in names else 0.0
    check(sae, x, acts, (a @ w["W_dec"] + w["b_dec"] + skip) * 3.7 / root)
    assert sae.hook == ("layers.5.mlp.input" if transcode else "layers.5.mlp")


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"n_targets": 3}, "n_targets is 3"),
        ({"coalesce_topk": "group"}, "coalesce_topk"),
        ({"signed": True}, "signed"),
        ({"activation": "batchtopk"}, "batchtopk"),
        ({"normalize_input": True}, "normalize_input"),
    ],
)
def test_clt_training_refusals(tmp_path: Path, cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(SaeError, match=words):
        clt_training(tmp_path, **cfg)


def test_clt_training_norms_without_their_switch(tmp_path: Path) -> None:
    sae, _ = clt_training(tmp_path, normalize_io=False)
    saved = {**arrays(in_norm=(1,)), **{"W_dec": sae.W_dec.double().numpy()}}
    whole = {
        **saved,
        **arrays(**{"encoder.weight": (F, D), "encoder.bias": (F,), "b_dec": (D,)}),
    }
    safetensors(tmp_path / "layers.5.mlp" / "sae.safetensors", whole)
    with pytest.raises(SaeError, match="in_norm"):
        load_sae(tmp_path / "layers.5.mlp")
