"""Nothing is read that was not understood: leftovers, shapes, companions and number formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from featuredb.errors import SaeError
from ingest.sae import load_sae
from tests.ingest.sae_files import arrays, inputs, relu, safetensors, tensors, torch_file

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saes"
D, F = 8, 24
torch.set_num_threads(1)

ROWS: dict[str, tuple[int, ...]] = {
    "W_enc": (F, D),
    "b_enc": (F,),
    "W_dec": (F, D),
    "b_dec": (D,),
}
COLUMNS = {**ROWS, "W_enc": (D, F)}
SQUARE = {**ROWS, "W_enc": (D, D), "W_dec": (D, D), "b_enc": (D,)}
SET = {"model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in"}
LINEAR: dict[str, tuple[int, ...]] = {
    "encoder.weight": (F, D),
    "encoder.bias": (F,),
    "decoder.weight": (D, F),
}


def refused(path: Path) -> str:
    with pytest.raises(SaeError) as caught:
        load_sae(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tensors and keys that no reader knows ---------------------------------------------------


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the weights in `file` with `edit` applied."""
    if file.suffix == ".safetensors":
        held: dict[str, Any] = load_file(file)
        edit(held)
        save_file(held, file)
    elif file.suffix == ".npz":
        with np.load(file) as archive:
            held = {name: torch.from_numpy(archive[name]) for name in archive.files}
        edit(held)
        arrays_of: dict[str, Any] = {name: value.numpy() for name, value in held.items()}
        np.savez(file, **arrays_of)
    else:
        held = torch.load(file, weights_only=True)
        edit(held)
        torch.save(held, file)


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.iterdir()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_an_unknown_tensor_is_refused_by_name(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    (folder / "golden.safetensors").unlink()
    (weights,) = load_sae(folder).files
    change(weights, lambda held: held.update(input_shift=torch.ones(3, dtype=dtype)))
    message = refused(folder)
    assert "input_shift [3]" in message
    assert weights.name in message


def test_what_lies_around_a_state_dictionary_counts(tmp_path: Path) -> None:
    w = tensors(arrays(**LINEAR, b_dec=(D,)))
    state = {**w, "threshold": torch.tensor(0.4), "k": torch.tensor(3)}
    backup = {"ae": state, "step": torch.tensor(9), "config": {"dict_class": "BatchTopKSAE"}}
    assert load_sae(torch_file(tmp_path / "ae.pt", backup)).d_sae == F
    torch_file(tmp_path / "ae.pt", {**backup, "activation_mean": torch.zeros(D)})
    assert "activation_mean" in refused(tmp_path)
    torch_file(tmp_path / "ae.pt", {**backup, "normalize_activations": True})
    assert "normalize_activations" in refused(tmp_path)


@pytest.mark.parametrize(
    "key", ["normalize_inputs", "center_input", "input_scaling", "whitening", "use_glu_encoder"]
)
@pytest.mark.parametrize("name", ["saelens_standard", "sparsify_topk", "dictlearn_topk"])
def test_a_key_that_changes_encode_is_refused(tmp_path: Path, name: str, key: str) -> None:
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    (folder / "golden.safetensors").unlink()
    file = folder / ("config.json" if name.startswith("dictlearn") else "cfg.json")
    raw = json.loads(file.read_text())
    section = raw.get("trainer", raw)
    for neutral in (False, None, "none"):
        section[key] = neutral
        file.write_text(json.dumps(raw))
        load_sae(folder)
    section[key] = True
    file.write_text(json.dumps(raw))
    assert f"{key}: True" in refused(folder)


def test_counts_of_training_do_no_harm(tmp_path: Path) -> None:
    counts = {"num_batches_not_active": (F,), "sparsity": (F,)}
    file = safetensors(
        tmp_path / "sae_weights.safetensors",
        arrays(**COLUMNS, **counts),
        cfg={"d_in": D, "d_sae": F, "metadata": {}},
    )
    assert load_sae(file).d_sae == F


def test_a_threshold_beside_another_rule_is_refused(tmp_path: Path) -> None:
    w = arrays(**COLUMNS, threshold=(F,))
    cfg = {"d_in": D, "d_sae": F, "metadata": {}}
    safetensors(tmp_path / "sae_weights.safetensors", w, cfg=cfg)
    assert "threshold [24]" in refused(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "architecture": "topk", "k": 3}))
    assert load_sae(tmp_path).stated_l0 == 3


# --- the same four names ---------------------------------------------------------------------


def test_one_set_of_names_four_formats(tmp_path: Path) -> None:
    """W_enc, W_dec, b_enc and b_dec: axes and companions decide, file names do not."""
    cfg = {"d_in": D, "d_sae": F, "metadata": {}}
    wide = {**ROWS, "W_enc": (1024, D), "W_dec": (D, 1024), "b_enc": (1024,)}
    made = {
        "saelens": safetensors(tmp_path / "a" / "layer_0.safetensors", arrays(**COLUMNS), cfg=cfg),
        "circuit_tracer": safetensors(tmp_path / "b" / "sae_weights.safetensors", arrays(**ROWS)),
        "qwen_scope": safetensors(
            tmp_path / "SAE-Res-Q-W1K-L0_4" / "layer0.safetensors", arrays(**wide)
        ),
        "kissane": torch_file(
            tmp_path / "d" / "ae.pt", tensors(arrays(**COLUMNS)), ae_cfg={"act_name": "h"}
        ),
    }
    (tmp_path / "b" / "config.yaml").write_text(yaml.safe_dump(SET))
    for format_name, file in made.items():
        assert load_sae(file).format == format_name


def test_axes_come_before_companions(tmp_path: Path) -> None:
    """A cfg.json beside circuit-tracer's weights does not make them SAELens's, nor the reverse."""
    cfg = {"d_in": D, "d_sae": F, "metadata": {}}
    for named, shapes in (("circuit_tracer", ROWS), ("saelens", COLUMNS)):
        file = safetensors(tmp_path / named / "layer_0.safetensors", arrays(**shapes), cfg=cfg)
        (file.parent / "config.yaml").write_text(yaml.safe_dump(SET))
        assert load_sae(file).format == named


def square(folder: Path, *beside: str, torch_saved: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if "config.yaml" in beside:
        (folder / "config.yaml").write_text(yaml.safe_dump(SET))
    if "cfg.json" in beside:
        cfg = {"d_in": D, "d_sae": D, "apply_b_dec_to_input": False, "metadata": {}}
        (folder / "cfg.json").write_text(json.dumps(cfg))
    if torch_saved:
        return torch_file(folder / "layer_0.pt", tensors(arrays(**SQUARE)))
    return safetensors(folder / "layer_0.safetensors", arrays(**SQUARE))


def test_square_matrices_need_one_configuration(tmp_path: Path) -> None:
    w, x = arrays(**SQUARE), inputs(D)
    given = torch.from_numpy(x).float()
    for name, z in (("config.yaml", x @ w["W_enc"].T), ("cfg.json", x @ w["W_enc"])):
        got = load_sae(square(tmp_path / name, name)).encode(given)
        np.testing.assert_allclose(got.numpy(), relu(z + w["b_enc"]), atol=1e-4)
    both = refused(square(tmp_path / "both", "config.yaml", "cfg.json"))
    assert "square" in both
    assert "config.yaml" in both
    assert "cfg.json" in both
    assert "no configuration" in refused(square(tmp_path / "none"))
    assert "no configuration" in refused(square(tmp_path / "torch", torch_saved=True))


@pytest.mark.parametrize(
    ("prefix", "kind"), [("_orig_mod.", ".pt"), ("module.", ".pt"), ("_orig_mod.", ".safetensors")]
)
def test_wrappers_of_a_module_are_taken_off(tmp_path: Path, prefix: str, kind: str) -> None:
    w = {f"{prefix}{name}": value for name, value in arrays(**LINEAR, bias=(D,)).items()}
    config = {"trainer": {"dict_class": "AutoEncoder"}}
    if kind == ".pt":
        file = torch_file(tmp_path / "ae.pt", tensors(w), config=config)
    else:
        file = safetensors(tmp_path / "model.safetensors", w, config=config)
    assert load_sae(file).d_sae == F
    if prefix == "_orig_mod.":
        both = {**tensors(w), "bias": torch.zeros(D)}
        assert "bias twice" in refused(torch_file(tmp_path / "both" / "ae.pt", both))


# --- companions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "shapes", "words"),
    [
        ("sae_weights.safetensors", COLUMNS, ("cfg.json is missing", "SAELens")),
        ("renamed.safetensors", COLUMNS, ("cfg.json is missing", "SAELens")),
        ("layer_0.safetensors", ROWS, ("config.yaml is missing", "circuit-tracer")),
        (
            "sae.safetensors",
            {**LINEAR, "W_dec": (F, D), "b_dec": (D,)},
            ("cfg.json is missing", "sparsify"),
        ),
        ("model.safetensors", {**LINEAR, "bias": (D,)}, ("hyperparams.json", "config.json")),
        ("W.safetensors", {"W_E": (D, F), "W_D": (F, D)}, ("config.json is miss", "Llamascopium")),
        ("a.pt", COLUMNS, ("a_cfg.json is missing", "Kissane")),
    ],
)
def test_a_missing_companion_is_named(
    tmp_path: Path, file: str, shapes: dict[str, tuple[int, ...]], words: tuple[str, ...]
) -> None:
    path = tmp_path / file
    if path.suffix == ".pt":
        torch_file(path, tensors(arrays(**shapes)))
    else:
        safetensors(path, arrays(**shapes))
    message = refused(path)
    assert "JSON" not in message
    assert file in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"W_enc": (2, D, F), "W_dec": (F, 2, D), "b_enc": (F,), "b_dec": (2, D)}, "two models"),
        ({"encoder.weight": (2, D, F), "decoder.weight": (2, F, D)}, "two models"),
        ({f"W_{n}": (2, D, D) for n in "QKVO"}, "Lorsa"),
        ({"U_matrices.4": (2, D, 4), "V_matrices.4": (2, 4, D)}, "MOLT"),
        ({"W_E": (3, D, F), "W_D.0": (1, F, D)}, "cross-layer transcoder of Llamascopium"),
        ({"W_E": (3, D, F), "W_D": (3, F, D)}, "crosscoder of Llamascopium"),
        ({"D": (F, D), "E": (D, F), "b": (D,)}, "temporal"),
        ({"encoder.weight": (F, D), "W_decs.0": (F, D)}, "several targets"),
        ({"w_enc": (D, F), "b_enc": (F,), "w_dec": (F, D), "b_pre": (D,)}, "interprot"),
        ({"W": (F, D), "b_enc": (F,), "b_dec": (D,)}, "DeepSeek-R1"),
        ({"saes.encoder.0.weight": (F, D)}, "e2e_sae"),
    ],
)
@pytest.mark.parametrize("kind", [".safetensors", ".pt"])
def test_what_is_recognized_and_not_read_is_named(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], words: str, kind: str
) -> None:
    w = arrays(**shapes)
    path = tmp_path / f"model{kind}"
    if kind == ".pt":
        torch_file(path, tensors(w))
    else:
        safetensors(path, w)
    message = refused(path)
    assert words in message
    assert "not supported: " in message


def test_opensae_is_named(tmp_path: Path) -> None:
    w = arrays(**{**LINEAR, "W_dec": (F, D), "b_dec": (D,)})
    file = safetensors(tmp_path / "model.safetensors", w, config={"input_normalize": True, "k": 3})
    assert "OpenSAE" in refused(file)


# --- number formats --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_floats_of_any_width_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    cfg = {"d_in": D, "d_sae": F, "apply_b_dec_to_input": False, "metadata": {}}
    w = {name: value.to(dtype) for name, value in tensors(arrays(**COLUMNS)).items()}
    file = tmp_path / "sae_weights.safetensors"
    save_file(w, file)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    x = torch.from_numpy(inputs(D)).float()
    right = torch.relu(x.double() @ w["W_enc"].double() + w["b_enc"].double()).float()
    torch.testing.assert_close(load_sae(file).encode(x), right, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
def test_quantized_weights_are_refused(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    w = tensors(arrays(**COLUMNS))
    w[name] = (w[name] * 10).to(dtype)
    save_file(w, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F, "metadata": {}}))
    message = refused(tmp_path)
    assert name in message
    assert "quantized" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(ROWS))
def test_weights_that_are_not_finite(tmp_path: Path, name: str, value: float) -> None:
    w = arrays(**ROWS)
    w[name].flat[2] = value
    file = safetensors(tmp_path / "layer_0.safetensors", w)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SET))
    assert f"{name} holds NaN or infinite" in refused(file)


# --- what lies further up --------------------------------------------------------------------


def test_configurations_of_other_things_above_do_not_decide(tmp_path: Path) -> None:
    """A training run's own files in the folder above an SAE of SAELens."""
    cfg = {"d_in": D, "d_sae": F, "metadata": {}}
    file = safetensors(tmp_path / "sae" / "sae_weights.safetensors", arrays(**COLUMNS), cfg=cfg)
    above = {"trainer": {"dict_class": "AutoEncoder"}, "sae_type": "lorsa", "input_normalize": True}
    (tmp_path / "config.json").write_text(json.dumps(above))
    (tmp_path / "config.yaml").write_text("lr: 1")
    assert load_sae(file).format == "saelens"
    assert load_sae(square(tmp_path / "square", "cfg.json")).format == "saelens"
