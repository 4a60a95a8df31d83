"""Formats and variants without fixtures: files with the published keys, formulas in numpy.

The formulas are written here from the papers and the libraries' documentation, in float64, and
share no code with the loaders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from featuredb.errors import SaeError
from ingest.sae import LoadedSae, load_sae
from tests.ingest.sae_files import record

Array = NDArray[np.float64]
D, F, N, K = 12, 40, 9, 5

torch.set_num_threads(1)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def arrays(**shapes: tuple[int, ...]) -> dict[str, Array]:
    r = rng()
    return {name: r.normal(size=shape) * 0.5 for name, shape in shapes.items()}


def tensors(weights: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.asarray(value, dtype=np.float32)).contiguous()
        for name, value in weights.items()
    }


def inputs(d: int = D) -> Array:
    return rng().normal(size=(N, d)) * 2 + 0.3


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def jump(z: Array, threshold: Any) -> Array:
    return np.asarray(z * (z > threshold) * (z > 0))


def topk(z: Array, k: int = K) -> Array:
    out = np.zeros_like(z)
    for row, values in enumerate(z):
        best = np.argsort(-values)[:k]
        out[row, best] = np.maximum(values[best], 0)
    return out


def check(sae: LoadedSae, x: Array, acts: Array, recon: Array) -> None:
    given = torch.from_numpy(x).float()
    got = sae.encode(given)
    assert np.array_equal(got.numpy() != 0, acts != 0)
    assert 0 < np.count_nonzero(acts) < acts.size
    np.testing.assert_allclose(got.numpy(), acts, atol=1e-5)
    record(sae, float(np.abs(got.numpy() - acts).max()))
    np.testing.assert_allclose(sae.decode(got, given).numpy(), recon, atol=1e-4)
    codes = sae.encode_sparse(given)
    dense = torch.zeros_like(got)
    dense[codes.rows, codes.features] = codes.values
    assert torch.equal(dense, got)
    order = codes.rows * sae.d_sae + codes.features
    assert bool((order.diff() > 0).all())


def saelens(folder: Path, weights: dict[str, Array], **cfg: Any) -> LoadedSae:
    folder.mkdir(exist_ok=True)
    save_file(tensors(weights), folder / "sae_weights.safetensors")
    whole = {"d_in": D, "d_sae": F, "metadata": {"hook_name": "blocks.1.hook_resid_post"}, **cfg}
    (folder / "cfg.json").write_text(json.dumps(whole))
    return load_sae(folder)


BASE = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}


# --- SAELens ---------------------------------------------------------------------------------


def test_saelens_topk_rescaled_by_decoder_norm(tmp_path: Path) -> None:
    w = arrays(**BASE)
    sae = saelens(tmp_path, w, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    x, norms = inputs(), np.linalg.norm(w["W_dec"], axis=1)
    acts = topk(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms)
    check(sae, x, acts, (acts / norms) @ w["W_dec"] + w["b_dec"])
    np.testing.assert_allclose(sae.W_dec.norm(dim=1).numpy(), 1.0, atol=1e-6)


def test_saelens_abstopk_keeps_signs(tmp_path: Path) -> None:
    w = arrays(**BASE)
    sae = saelens(tmp_path, w, architecture="abstopk", k=K, apply_b_dec_to_input=False)
    x = inputs()
    z = x @ w["W_enc"] + w["b_enc"]
    acts = np.where(topk(np.abs(z)) > 0, z, 0.0)
    assert (acts < 0).any()
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("where", ["cfg", "metadata", "scaler"])
def test_saelens_expected_average_is_folded_once(tmp_path: Path, where: str) -> None:
    s, w, x = 0.31, arrays(**BASE, threshold=(F,)), inputs()
    extra: dict[str, Any] = {"norm_scaling_factor": s} if where == "cfg" else {}
    if where == "metadata":
        extra["metadata"] = {"norm_scaling_factor": s}
    if where == "scaler":
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s}))
    sae = saelens(
        tmp_path, w, architecture="jumprelu", normalize_activations="expected_average_only_in",
        **extra,
    )  # fmt: skip
    acts = jump((s * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, acts, (acts @ w["W_dec"] + w["b_dec"]) / s)


def test_saelens_expected_average_without_a_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="norm_scaling_factor"):
        saelens(tmp_path, arrays(**BASE), normalize_activations="expected_average_only_in")


def test_saelens_constant_norm_rescale(tmp_path: Path) -> None:
    w, x = arrays(**BASE), inputs()
    sae = saelens(tmp_path, w, normalize_activations="constant_norm_rescale")
    factor = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    acts = relu((x * factor - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    check(sae, x, acts, (acts @ w["W_dec"] + w["b_dec"]) / factor)
    assert torch.isfinite(sae.encode(torch.zeros(1, D))).all()
    with pytest.raises(SaeError, match=r"decode\(acts, x\)"):
        sae.decode(sae.encode(torch.zeros(1, D)))


@pytest.mark.parametrize("kind", ["skip_transcoder", "jumprelu_skip_transcoder"])
def test_saelens_skip_transcoder(tmp_path: Path, kind: str) -> None:
    out = 7
    w = arrays(
        W_enc=(D, F), b_enc=(F,), W_dec=(F, out), b_dec=(out,), W_skip=(out, D), threshold=(F,)
    )
    if kind == "skip_transcoder":
        del w["threshold"]
    hooks = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    sae = saelens(
        tmp_path, w, architecture=kind, d_out=out, apply_b_dec_to_input=True, metadata=hooks
    )
    x = inputs()
    acts = jump(x @ w["W_enc"] + w["b_enc"], w.get("threshold", 0.0))
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T)
    assert (sae.d_in, sae.d_out) == (D, out)
    assert (sae.hook, sae.hook_out) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    with pytest.raises(SaeError, match="skip connection"):
        sae.decode(torch.zeros(1, F))


def test_saelens_jumprelu_transcoder(tmp_path: Path) -> None:
    w = arrays(W_enc=(D, F), b_enc=(F,), W_dec=(F, 7), b_dec=(7,), threshold=(F,))
    sae = saelens(tmp_path, w, architecture="jumprelu_transcoder", d_out=7)
    x = inputs()
    acts = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("spelling", ["activation_fn_str", "activation_fn"])
@pytest.mark.parametrize("hook_key", ["hook_point", "hook_name"])
def test_saelens_before_6(tmp_path: Path, spelling: str, hook_key: str) -> None:
    w, x = arrays(**BASE), inputs()
    save_file(tensors(w), tmp_path / "sae_weights.safetensors")
    flat: dict[str, Any] = {
        "d_in": D, "d_sae": F, hook_key: "blocks.3.hook_resid_pre", "hook_layer": 3,
        "model_name": "gpt2-small", "context_size": 64, spelling: "topk",
        "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    sae = load_sae(tmp_path)
    acts = topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.architecture, sae.stated_l0, sae.context_size) == ("topk", float(K), 64)
    assert (sae.hook, sae.model_name) == ("blocks.3.hook_resid_pre", "gpt2-small")
    assert sae.prepend_bos is True


def test_saelens_before_6_standard_subtracts_b_dec(tmp_path: Path) -> None:
    w, x = {**arrays(**BASE), "scaling_factor": np.ones(F)}, inputs()
    save_file(tensors(w), tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F, "prepend_bos": False}))
    sae = load_sae(tmp_path)
    acts = relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert sae.prepend_bos is False


def test_saelens_finetuned_scale_is_in_the_decoder(tmp_path: Path) -> None:
    w, x = arrays(**BASE, scaling_factor=(F,)), inputs()
    sae = saelens(tmp_path, w, finetuning_scaling_factor=True)
    acts = relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    check(sae, x, acts, (acts * w["scaling_factor"]) @ w["W_dec"] + w["b_dec"])
    with pytest.raises(SaeError, match="finetuning_scaling_factor"):
        saelens(tmp_path, w)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not supported"),
        ({"architecture": "topk"}, "k is None"),
        ({"architecture": "topk", "k": F + 1}, f"k is {F + 1}"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"metadata": {"hook_head_index": 3}}, "single attention head"),
        ({"metadata": {"hook_point_head_index": 3}}, "single attention head"),
    ],
)
def test_saelens_refusals(tmp_path: Path, cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(SaeError, match=message):
        saelens(tmp_path, arrays(**BASE), **cfg)


# --- Gemma Scope -----------------------------------------------------------------------------


def gemma(folder: Path, w: dict[str, Array]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: v.astype(np.float32) for name, v in w.items()})  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("res", "blocks.12.hook_resid_post"),
        ("mlp", "blocks.12.hook_mlp_out"),
        ("att", "blocks.12.attn.hook_z"),
    ],
)
def test_gemma_scope_paths(tmp_path: Path, site: str, hook: str) -> None:
    w, x = arrays(**BASE, threshold=(F,)), inputs()
    inside = f"gemma-scope-2b-pt-{site}/layer_12/width_16k/average_l0_82"
    sae = load_sae(gemma(tmp_path / inside, w))
    acts = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.hook, sae.stated_l0, sae.model_name) == (hook, 82.0, "google/gemma-2-2b")
    assert sae.name == "layer_12-width_16k-average_l0_82"
    assert (sae.prepend_bos, sae.hook_out) == (True, None)


def test_gemma_scope_transcoder(tmp_path: Path) -> None:
    w = arrays(W_enc=(D, F), b_enc=(F,), W_dec=(F, 7), b_dec=(7,), threshold=(F,))
    sae = load_sae(
        gemma(tmp_path / "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_9", w)
    )
    x = inputs()
    acts = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.hook, sae.hook_out) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")


def test_gemma_scope_embedding_is_rescaled(tmp_path: Path) -> None:
    w, x = arrays(**BASE, threshold=(F,)), inputs() * np.sqrt(D)
    sae = load_sae(gemma(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", w))
    acts = jump(x @ (w["W_enc"] / np.sqrt(D)) + w["b_enc"], w["threshold"])
    check(sae, x, acts, acts @ (w["W_dec"] * np.sqrt(D)) + w["b_dec"])
    assert (sae.hook, sae.stated_l0) == ("hook_embed", 6.0)


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2(tmp_path: Path, affine: bool) -> None:
    out = 7 if affine else D
    w = arrays(
        w_enc=(D, F), b_enc=(F,), w_dec=(F, out), b_dec=(out,), threshold=(F,),
        affine_skip_connection=(D, out),
    )  # fmt: skip
    into = "model.layers.7.pre_feedforward_layernorm.output"
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": into}
    if affine:
        config["hf_hook_point_out"] = "model.layers.7.post_feedforward_layernorm.output"
    else:
        del w["affine_skip_connection"]
    folder = tmp_path / "layer_7_width_16k_l0_big"
    folder.mkdir()
    save_file(tensors(w), folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    sae, x = load_sae(folder), inputs()
    acts = jump(x @ w["w_enc"] + w["b_enc"], w["threshold"])
    skip = x @ w["affine_skip_connection"] if affine else 0.0
    check(sae, x, acts, acts @ w["w_dec"] + w["b_dec"] + skip)
    assert (sae.format, sae.hook) == ("gemma_scope_2", into)
    assert sae.hook_out == config.get("hf_hook_point_out")
    assert sae.model_name == "google/gemma-3-1b-pt"
    assert sae.name == folder.name


# --- sparsify --------------------------------------------------------------------------------


def sparsify(folder: Path, w: dict[str, Array], **cfg: Any) -> LoadedSae:
    folder.mkdir(parents=True)
    save_file(tensors(w), folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": K, **cfg}))
    return load_sae(folder)


SPARSIFY = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}


def test_sparsify_groupmax(tmp_path: Path) -> None:
    w, x = arrays(**SPARSIFY), inputs()
    (tmp_path / "config.json").write_text(json.dumps({"model": "m", "ctx_len": 99}))
    sae = sparsify(tmp_path / "layers.5.mlp", w, activation="groupmax", num_latents=F)
    groups = relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).reshape(N, K, -1)
    acts = np.where(groups == groups.max(axis=2, keepdims=True), groups, 0).reshape(N, F)
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.architecture, sae.hook, sae.hook_out) == ("groupmax", "layers.5.mlp", None)
    assert (sae.model_name, sae.context_size, sae.name) == ("m", 99, "layers.5.mlp")


def test_sparsify_zero_latents_means_the_expansion_factor(tmp_path: Path) -> None:
    factor = 4
    shapes = {**SPARSIFY, "encoder.weight": (D * factor, D), "encoder.bias": (D * factor,)}
    w, x = arrays(**{**shapes, "W_dec": (D * factor, D)}), inputs()
    sae = sparsify(tmp_path / "layers.5", w, num_latents=0, expansion_factor=factor)
    acts = topk(relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]))
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.d_sae, sae.hook) == (D * factor, "layers.5")


def test_sparsify_skip_transcoder_reads_the_module_s_input(tmp_path: Path) -> None:
    w, x = arrays(**SPARSIFY, W_skip=(D, D)), inputs()
    cfg = {"num_latents": F, "transcode": True, "skip_connection": True}
    sae = sparsify(tmp_path / "layers.5.mlp", w, **cfg)
    acts = topk(relu(x @ w["encoder.weight"].T + w["encoder.bias"]))
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T)
    assert (sae.hook, sae.hook_out) == ("layers.5.mlp.input", "layers.5.mlp")


def test_sparsify_seeds(tmp_path: Path) -> None:
    sae = sparsify(tmp_path / "h.3.attn" / "seed2", arrays(**SPARSIFY), num_latents=F)
    assert (sae.hook, sae.name) == ("h.3.attn", "h.3.attn-seed2")


# --- dictionary_learning ---------------------------------------------------------------------


def dictionary(folder: Path, content: Any, **trainer: Any) -> LoadedSae:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "ae.pt")
    sizes = {"activation_dim": D, "dict_size": F, "layer": 2, "lm_name": "m"}
    (folder / "config.json").write_text(json.dumps({"trainer": {**sizes, **trainer}}))
    return load_sae(folder)


def test_dictionary_matryoshka_uses_its_threshold(tmp_path: Path) -> None:
    w, x = arrays(**BASE), inputs()
    content = {
        **tensors(w),
        "threshold": torch.tensor(0.7),
        "k": torch.tensor(K),
        "group_sizes": torch.tensor([10, 30]),
    }
    sae = dictionary(tmp_path, content, dict_class="MatryoshkaBatchTopKSAE", k=K)
    acts = jump(relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]), 0.7)
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.stated_l0, sae.hook) == (float(K), "blocks.2.hook_resid_post")


def test_dictionary_jumprelu_does_not_subtract(tmp_path: Path) -> None:
    w, x = arrays(**BASE, threshold=(F,)), inputs()
    sae = dictionary(tmp_path, tensors(w), dict_class="JumpReluAutoEncoder")
    acts = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, acts, acts @ w["W_dec"] + w["b_dec"])


def test_dictionary_new_autoencoder(tmp_path: Path) -> None:
    names = {"encoder.weight": (F, D), "encoder.bias": (F,)}
    w, x = arrays(**names, **{"decoder.weight": (D, F), "decoder.bias": (D,)}), inputs()
    sae = dictionary(tmp_path, tensors(w), dict_class="AutoEncoderNew")
    acts = relu(x @ w["encoder.weight"].T + w["encoder.bias"])
    check(sae, x, acts, acts @ w["decoder.weight"].T + w["decoder.bias"])


def test_dictionary_standard_keeps_raw_units(tmp_path: Path) -> None:
    """The library folds decoder norms on loading; encode() of the saved weights does not."""
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "bias": (D,)}
    w, x = arrays(**names), inputs()
    sae = dictionary(tmp_path / "resid_post_layer_9" / "trainer_0", tensors(w))
    acts = relu((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"])
    check(sae, x, acts, acts @ w["decoder.weight"].T + w["bias"])
    norms = np.linalg.norm(w["decoder.weight"], axis=0)
    np.testing.assert_allclose(sae.W_dec.norm(dim=1).numpy(), norms, atol=1e-5)
    assert sae.name == "resid_post_layer_9-trainer_0"


@pytest.mark.parametrize("factor", [None, 3.5])
def test_dictionary_backup_is_nested_and_unscaled(tmp_path: Path, factor: float | None) -> None:
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
    w, x = arrays(**names, b_dec=(D,)), inputs()
    state = {**tensors(w), "threshold": torch.tensor(0.4), "k": torch.tensor(K)}
    content: dict[str, Any] = {
        "step": 10, "ae": state, "optimizer": {"state": {}, "param_groups": []},
        "config": {"dict_class": "BatchTopKSAE", "k": K},
    }  # fmt: skip
    if factor is not None:
        content["norm_factor"] = factor
    torch.save(content, tmp_path / "ae.pt")
    sae, f = load_sae(tmp_path), factor or 1.0
    # trained on x / f; its activations times f are the units of x
    acts = f * jump((x / f - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0.4)
    check(sae, x, acts, acts @ w["decoder.weight"].T + f * w["b_dec"])
    assert sae.architecture == "BatchTopKSAE"


def test_dictionary_checkpoint_beside_its_final_weights(tmp_path: Path) -> None:
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "bias": (D,)}
    final = tensors(arrays(**names))
    dictionary(tmp_path / "trainer_0", final, dict_class="AutoEncoder")
    checkpoints = tmp_path / "trainer_0" / "checkpoints"
    checkpoints.mkdir()
    torch.save({k: v * 2 for k, v in final.items()}, checkpoints / "ae_100.pt")
    sae = load_sae(tmp_path / "trainer_0")
    assert sae.files == (tmp_path / "trainer_0" / "ae.pt",)
    early = load_sae(checkpoints / "ae_100.pt")
    torch.testing.assert_close(early.W_enc, sae.W_enc * 2)
    assert early.model_name == "m"


def test_dictionary_without_config_is_ambiguous_for_top_k(tmp_path: Path) -> None:
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
    content = {**tensors(arrays(**names, b_dec=(D,))), "k": torch.tensor(K)}
    torch.save(content, tmp_path / "ae.pt")
    with pytest.raises(SaeError, match="dict_class is needed"):
        load_sae(tmp_path)


# --- OpenAI, Llama Scope, Goodfire -----------------------------------------------------------

OPENAI = {
    "pre_bias": (D,),
    "encoder.weight": (F, D),
    "latent_bias": (F,),
    "decoder.weight": (D, F),
}


def openai(tmp_path: Path, where: str, **extra: Any) -> tuple[LoadedSae, dict[str, Array]]:
    w = arrays(**OPENAI)
    folder = tmp_path / where / "autoencoders"
    folder.mkdir(parents=True)
    stats = {"stats_last_nonzero": torch.zeros(F, dtype=torch.long)}
    torch.save({**tensors(w), **stats, **extra}, folder / "8.pt")
    return load_sae(folder / "8.pt"), w


@pytest.mark.parametrize("version", ["", "_v4"])
def test_openai_v1_and_v4(tmp_path: Path, version: str) -> None:
    sae, w = openai(tmp_path, f"mlp_post_act{version}", activation="ReLU")
    x = inputs()
    acts = relu((x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"])
    check(sae, x, acts, acts @ w["decoder.weight"].T + w["pre_bias"])
    assert (sae.hook, sae.model_name) == ("blocks.8.mlp.hook_post", "gpt2")


def test_openai_v5(tmp_path: Path) -> None:
    state = {"k": K, "postact_fn": "ReLU"}
    sae, w = openai(
        tmp_path, "resid_delta_attn_v5_32k", activation="TopK", activation_state_dict=state
    )
    x = inputs()
    mean, deviation = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
    normed = (x - mean) / (deviation + 1e-5)
    acts = topk((normed - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"])
    recon = (acts @ w["decoder.weight"].T + w["pre_bias"]) * deviation + mean
    check(sae, x, acts, recon)
    assert (sae.hook, sae.stated_l0) == ("blocks.8.hook_attn_out", float(K))
    assert sae.name == "resid_delta_attn_v5_32k-8"


@pytest.mark.parametrize("normed", [True, False])
def test_llama_scope(tmp_path: Path, normed: bool) -> None:
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
    w, x = arrays(**names, **{"decoder.bias": (D,)}), inputs()
    (tmp_path / "checkpoints").mkdir()
    save_file(tensors(w), tmp_path / "checkpoints" / "final.safetensors")
    config = {
        "d_model": D, "d_sae": F, "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post", "act_fn": "jumprelu",
        "jump_relu_threshold": 0.52734375, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 17.125, "out": 9.5},
        "sparsity_include_decoder_norm": normed, "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "top_k": 50,
    }  # fmt: skip
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    sae = load_sae(tmp_path)
    s_in, s_out = np.sqrt(D) / 17.125, np.sqrt(D) / 9.5
    b_enc, b_dec = w["encoder.bias"] / s_in, w["decoder.bias"] / s_out
    W_dec = w["decoder.weight"].T * s_in / s_out
    norms = np.linalg.norm(W_dec, axis=1) if normed else np.ones(F)
    acts = jump((x @ w["encoder.weight"].T + b_enc) * norms, 0.52734375)
    check(sae, x, acts, (acts / norms) @ W_dec + b_dec)
    assert (sae.format, sae.architecture, sae.hook_out) == ("llama_scope", "jumprelu", None)
    assert sae.hook == "blocks.15.hook_resid_post"


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_llama_scope_factors_of_its_trainer(tmp_path: Path, factor: float) -> None:
    """Factors of 1 change nothing. Others are refused."""
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
    w = {**arrays(**names, **{"decoder.bias": (D,)}), "feature_act_scale": np.full(F, factor)}
    (tmp_path / "checkpoints").mkdir()
    save_file(tensors(w), tmp_path / "checkpoints" / "final.safetensors")
    config = {
        "d_model": D, "hook_point_in": "blocks.1.hook_resid_post", "act_fn": "relu",
        "norm_activation": "inference",
    }  # fmt: skip
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    if factor == 1:
        assert load_sae(tmp_path).d_sae == F
    else:
        with pytest.raises(SaeError, match="feature_act_scale"):
            load_sae(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_goodfire(tmp_path: Path, suffix: str) -> None:
    names = {"encoder_linear.weight": (F, D), "encoder_linear.bias": (F,)}
    w = arrays(**names, **{"decoder_linear.weight": (D, F), "decoder_linear.bias": (D,)})
    torch.save(tensors(w), tmp_path / f"Llama-3.1-8B-Instruct-SAE-l19{suffix}")
    sae, x = load_sae(tmp_path), inputs()
    acts = relu(x @ w["encoder_linear.weight"].T + w["encoder_linear.bias"])
    check(sae, x, acts, acts @ w["decoder_linear.weight"].T + w["decoder_linear.bias"])
    assert (sae.hook, sae.format) == ("blocks.19.hook_resid_post", "goodfire")
    assert sae.model_name == "meta-llama/Llama-3.1-8B-Instruct"


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    w = {name: value.to(torch.bfloat16) for name, value in tensors(arrays(**BASE)).items()}
    save_file(w, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F, "metadata": {}}))
    sae = load_sae(tmp_path)
    assert sae.dtype == sae.W_dec.dtype == torch.float32
    assert torch.equal(sae.W_dec, w["W_dec"].float())
