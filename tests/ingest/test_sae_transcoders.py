"""circuit-tracer's per-layer transcoders and Llamascopium, against numpy from the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

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

D, F, K = 9, 33, 5
torch.set_num_threads(1)

SHAPES: dict[str, tuple[int, ...]] = {
    "W_enc": (F, D),
    "b_enc": (F,),
    "W_dec": (F, D),
    "b_dec": (D,),
}
THRESHOLD = "activation_function.threshold"


def weights(*, skip: bool = False, threshold: float | None = None) -> dict[str, Array]:
    w = arrays(**SHAPES, **({"W_skip": (D, D)} if skip else {}))
    if threshold is not None:
        w[THRESHOLD] = np.abs(arrays(t=(F,))["t"]) + threshold
    return w


def tracer(
    folder: Path, w: dict[str, Array], layer: int = 7, *, config_in: Path | None = None, **cfg: Any
) -> Path:
    file = safetensors(folder / f"layer_{layer}.safetensors", w)
    set_config(config_in or folder, **cfg)
    return file


def set_config(folder: Path, **cfg: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "model_name": "owner/tiny",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        **cfg,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))


def decoded(w: dict[str, Array], acts: Array, x: Array) -> Array:
    skip = x @ w["W_skip"].T if "W_skip" in w else 0.0
    return np.asarray(acts @ w["W_dec"] + w["b_dec"] + skip)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rule", ["relu", "topk", "jumprelu", "unsaid"])
def test_circuit_tracer(tmp_path: Path, rule: str, skip: bool) -> None:
    w = weights(skip=skip, threshold=0.1 if rule == "jumprelu" else None)
    cfg: dict[str, Any] = {"relu": {"activation": "relu"}, "topk": {"activation": "topk", "k": K}}
    file = tracer(tmp_path, w, **cfg.get(rule, {}))
    x = inputs(D)
    z = x @ w["W_enc"].T + w["b_enc"]
    acts = relu(z)
    if rule == "topk":
        acts = top(z, K)
    if rule == "jumprelu":
        acts = z * (z > w[THRESHOLD])
    sae = load_sae(file)
    check(sae, x, acts, decoded(w, acts, x))
    assert (sae.hook, sae.hook_out) == ("blocks.7.mlp.hook_in", "blocks.7.mlp.hook_out")
    assert (sae.model_name, sae.format) == ("owner/tiny", "circuit_tracer")
    assert sae.stated_l0 == (K if rule == "topk" else None)


def test_circuit_tracer_top_k_keeps_negative_values(tmp_path: Path) -> None:
    w = weights()
    w["b_enc"] -= 100
    x = inputs(D)
    acts = top(x @ w["W_enc"].T + w["b_enc"], K)
    assert (acts[acts != 0] < 0).all()
    check(load_sae(tracer(tmp_path, w, activation="topk", k=K)), x, acts, decoded(w, acts, x))


def test_circuit_tracer_negative_thresholds_let_negative_values_through(tmp_path: Path) -> None:
    w, x = weights(threshold=-1.5), inputs(D)
    z = x @ w["W_enc"].T + w["b_enc"]
    acts = z * (z > w[THRESHOLD])
    assert (acts < 0).any()
    check(load_sae(tracer(tmp_path, w)), x, acts, decoded(w, acts, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_circuit_tracer_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    w = weights(skip=True)
    set_config(tmp_path, activation="relu")
    file = safetensors(tmp_path / "layer_0.safetensors", w, dtype)
    w, x = rounded(w, dtype), inputs(D)
    acts = relu(x @ w["W_enc"].T + w["b_enc"])
    check(load_sae(file), x, acts, decoded(w, acts, x))


def test_circuit_tracer_config_in_the_folder_above(tmp_path: Path) -> None:
    w = weights()
    file = tracer(tmp_path / "layers", w, 3, config_in=tmp_path)
    assert load_sae(file).hook == "blocks.3.mlp.hook_in"


def test_circuit_tracer_saved_k(tmp_path: Path) -> None:
    """to_safetensors() writes k, which must be the configuration's, and needs its rule."""
    w = {**weights(), "k": np.array([K])}
    sae = load_sae(tracer(tmp_path / "a", w, activation="topk"))
    assert sae.stated_l0 == K
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "activation is None"),
        ({"activation": "topk", "k": 2}, "k is 2"),
    ]
    for cfg, words in wrong:
        with pytest.raises(SaeError, match=words):
            load_sae(tracer(tmp_path / words[:3], w, **cfg))


def test_circuit_tracer_release_whose_k_is_in_the_library(tmp_path: Path) -> None:
    wide = {**SHAPES, "W_enc": (200, D), "W_dec": (200, D), "b_enc": (200,)}
    file = tracer(tmp_path / "crv-8b-instruct-transcoders", arrays(**wide))
    assert load_sae(file).stated_l0 == 128


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"activation": "gelu"}, "activation 'gelu'"),
        ({"activation": "topk"}, "k is None"),
        ({"activation": "topk", "k": F + 1}, "k is 34"),
        ({"model_kind": "cross_layer_transcoder"}, "cross_layer_transcoder"),
        ({"input_normalization": "rms"}, "input_normalization"),
    ],
)
def test_circuit_tracer_refusals(tmp_path: Path, cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(SaeError, match=words):
        load_sae(tracer(tmp_path, weights(), **cfg))


def test_circuit_tracer_relu_with_a_threshold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=THRESHOLD):
        load_sae(tracer(tmp_path, weights(threshold=0.1), activation="relu"))


@pytest.mark.parametrize("yaml_text", ["", "[1]", "a: [", "\x00"])
def test_circuit_tracer_broken_config(tmp_path: Path, yaml_text: str) -> None:
    file = tracer(tmp_path, weights())
    (tmp_path / "config.yaml").write_text(yaml_text)
    with pytest.raises(SaeError, match=r"config\.yaml"):
        load_sae(file)


# --- sets ------------------------------------------------------------------------------------


def test_a_set_by_folder_layer_and_file(tmp_path: Path) -> None:
    for layer in range(2):
        tracer(tmp_path / "set", weights(), layer)
    by_file = load_sae(tmp_path / "set" / "layer_1.safetensors")
    by_layer = load_sae(tmp_path / "set" / "layer_1")
    assert (by_layer.hash, by_layer.hook) == (by_file.hash, "blocks.1.mlp.hook_in")
    with pytest.raises(SaeError, match=r"holds 2 SAEs: name .* of layer_0\.safetensors"):
        load_sae(tmp_path / "set")
    with pytest.raises(SaeError, match="no such file"):
        load_sae(tmp_path / "set" / "layer_2")


def test_a_set_that_lists_other_files(tmp_path: Path) -> None:
    """The i-th entry is layer i. What the entry's own release says of its hooks comes first."""
    gemma = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)}
    listed = []
    for place in ("a", "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_9"):
        folder = tmp_path / "elsewhere" / place
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **{n: v.astype("f4") for n, v in arrays(**gemma).items()})  # type: ignore[arg-type]
        listed.append(f"../elsewhere/{place}/params.npz")
    set_config(tmp_path / "set", transcoders=listed, feature_input_hook="ln2.hook_normalized")
    first, second = (load_sae(tmp_path / "set" / f"layer_{i}") for i in range(2))
    assert (first.format, first.hook) == ("gemma_scope", "blocks.0.ln2.hook_normalized")
    assert first.hook_out == "blocks.0.mlp.hook_out"
    assert first.model_name == "owner/tiny"
    assert (second.hook_out, second.model_name) == ("blocks.1.hook_mlp_out", "google/gemma-2-2b")
    with pytest.raises(SaeError, match=r"set of 2 transcoders: name .* set/layer_0 … layer_1"):
        load_sae(tmp_path / "set")
    with pytest.raises(SaeError, match="lists 2 transcoders, no layer_2"):
        load_sae(tmp_path / "set" / "layer_2")


# --- Llamascopium ----------------------------------------------------------------------------

IN, OUT = "blocks.12.ln2.hook_normalized", "blocks.12.hook_mlp_out"
NORM = "dataset_average_activation_norm."


def openmoss(
    folder: Path,
    *,
    generation: int = 2026,
    nested: bool = False,
    threshold: bool = False,
    **cfg: Any,
) -> tuple[LoadedSae, dict[str, Array]]:
    """The SAE, and its tensors by the names of 2026."""
    w = arrays(W_E=(D, F), b_E=(F,), W_D=(F, D), b_D=(D,), log_t=(F,))
    log_t = w.pop("log_t")
    saved = dict(w)
    if generation == 2025:
        saved = {
            "encoder.weight": w["W_E"].T,
            "encoder.bias": w["b_E"],
            "decoder.weight": w["W_D"].T,
            "decoder.bias": w["b_D"],
        }
    prefix = "activation_function." if generation == 2026 else ""
    if threshold:
        w["log_t"] = saved[f"{prefix}log_jumprelu_threshold"] = log_t
    saved |= {NORM + IN: np.array([4.1]), NORM + OUT: np.array([0.7])}
    if cfg.get("norm_activation") == "inference":  # uninitialized memory
        saved |= {NORM + IN: np.array([np.nan]), NORM + OUT: np.array([1e-30])}
    config = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "act_fn": "topk",
        "top_k": K,
        "norm_activation": "dataset-wise",
        "hook_point_in": IN,
        "hook_point_out": OUT,
        **cfg,
    }
    if nested:
        file = torch_file(folder / "sae_weights.pt", {"sae": tensors(saved)}, config=config)
    else:
        file = safetensors(folder / "sae_weights.safetensors", saved, config=config)
    return load_sae(file.parent), w


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("generation", [2025, 2026])
@pytest.mark.parametrize("rule", ["topk", "jumprelu", "relu"])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
@pytest.mark.parametrize("with_norms", [True, False])
def test_llamascopium(
    tmp_path: Path, rule: str, generation: int, norm: str, nested: bool, with_norms: bool
) -> None:
    """f = g(z n) / n of the normalized input: the unit of the library's encode()."""
    sae, w = openmoss(
        tmp_path,
        generation=generation,
        nested=nested,
        threshold=rule == "jumprelu",
        act_fn=rule,
        norm_activation=norm,
        sparsity_include_decoder_norm=with_norms,
    )
    s_in, s_out = (np.sqrt(D) / 4.1, np.sqrt(D) / 0.7) if norm == "dataset-wise" else (1.0, 1.0)
    x = inputs(D)
    n = np.linalg.norm(w["W_D"], axis=1) if with_norms else np.ones(F)
    z = (s_in * x @ w["W_E"] + w["b_E"]) * n
    if rule == "topk":
        acts = top(relu(z), K) / n
    elif rule == "jumprelu":
        acts = z * (z > np.exp(w["log_t"])) / n
    else:
        acts = relu(z) / n
    check(sae, x, acts, (acts @ w["W_D"] + w["b_D"]) / s_out)
    assert (sae.hook, sae.hook_out) == (IN, OUT)
    assert sae.stated_l0 == (K if rule == "topk" else None)


def test_llamascopium_decoder_norms_choose_the_top_k(tmp_path: Path) -> None:
    sae, w = openmoss(tmp_path)
    z = relu(np.sqrt(D) / 4.1 * inputs(D) @ w["W_E"] + w["b_E"])
    without = top(z, K) != 0
    got = sae.encode(torch.from_numpy(inputs(D)).float()).numpy() != 0
    assert (without != got).any()


def test_llamascopium_token_wise(tmp_path: Path) -> None:
    sae, w = openmoss(tmp_path, norm_activation="token-wise", hook_point_out=IN)
    x = inputs(D)
    s = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    n = np.linalg.norm(w["W_D"], axis=1)
    acts = top(relu(s * x @ w["W_E"] + w["b_E"]) * n, K) / n
    check(sae, x, acts, (acts @ w["W_D"] + w["b_D"]) / s)
    assert sae.hook_out is None


def test_llamascopium_under_checkpoints(tmp_path: Path) -> None:
    openmoss(tmp_path / "sae")
    (tmp_path / "sae" / "checkpoints").mkdir()
    weights_file = tmp_path / "sae" / "sae_weights.safetensors"
    final = weights_file.rename(tmp_path / "sae" / "checkpoints" / "final.safetensors")
    assert load_sae(final).format == "llamascopium"


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"sae_type": "lorsa"}, "this is Lorsa, .* tokens before"),
        ({"sae_type": "molt"}, "this is MOLT"),
        ({"sae_type": "crosscoder"}, "a crosscoder of Llamascopium"),
        ({"sae_type": "clt"}, "a cross-layer transcoder of Llamascopium"),
        ({"sae_type": "new"}, "sae_type 'new'"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder"),
        ({"norm_activation": "batch-wise"}, "batch-wise"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"act_fn": "batchtopk"}, "batchtopk"),
        ({"top_k": 0}, "top_k is 0"),
        ({"hook_point_in": "blocks.3.hook_resid_mid"}, r"no tensor dataset_average\S*resid_mid"),
        ({"expansion_factor": 8}, "expansion_factor"),
    ],
)
def test_llamascopium_refusals(tmp_path: Path, cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(SaeError, match=words):
        openmoss(tmp_path, **cfg)
