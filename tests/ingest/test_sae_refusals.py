"""What is not an SAE, or is a damaged or dangerous one, is refused in one clear line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featuredb.errors import SaeError
from ingest.sae import load_sae

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saes"


def copy(name: str, to: Path) -> Path:
    folder = to / name
    shutil.copytree(FIXTURES / name, folder)
    (folder / "golden.safetensors").unlink()
    (folder / "golden.json").unlink()
    return folder


def refused(path: Path | str) -> str:
    with pytest.raises(SaeError) as caught:
        load_sae(path)
    message = str(caught.value)
    assert message.strip()
    assert "\n" not in message
    return message


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "sae_weights.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("saelens_standard", "sae_weights.safetensors"),
        ("sparsify_topk", "sae.safetensors"),
        ("gemmascope_jumprelu", "params.npz"),
        ("dictlearn_standard", "ae.pt"),
    ],
)
@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_truncated(tmp_path: Path, name: str, file: str, keep: float) -> None:
    weights = copy(name, tmp_path) / file
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    assert file in refused(weights.parent)


@pytest.mark.parametrize(
    ("name", "file"),
    [("gemmascope_jumprelu", "params.npz"), ("dictlearn_standard", "ae.pt")],
)
def test_garbage(tmp_path: Path, name: str, file: str) -> None:
    weights = copy(name, tmp_path) / file
    weights.write_bytes(os.urandom(5000))
    assert file in refused(weights.parent)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    folder, mark = copy("dictlearn_standard", tmp_path), tmp_path / "ran"
    content = {"encoder.weight": _Bomb(mark)}
    if zipped:
        torch.save(content, folder / "ae.pt")
    else:
        (folder / "ae.pt").write_bytes(pickle.dumps(content))
    message = refused(folder)
    assert "ae.pt" in message
    assert "can run code" in message
    assert not mark.exists()


def test_malicious_npz_does_not_run(tmp_path: Path) -> None:
    folder, mark = copy("gemmascope_jumprelu", tmp_path), tmp_path / "ran"
    objects = np.empty(1, dtype=object)
    objects[0] = _Bomb(mark)
    np.savez(folder / "params.npz", W_enc=objects)
    assert "params.npz" in refused(folder)
    assert not mark.exists()


@pytest.mark.parametrize("tensor", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(tmp_path: Path, tensor: str, value: float) -> None:
    folder = copy("saelens_jumprelu", tmp_path)

    def poison(weights: dict[str, torch.Tensor]) -> None:
        weights[tensor].view(-1)[3] = value

    edit_weights(folder, poison)
    message = refused(folder)
    assert f"{tensor} holds NaN or infinite" in message


def test_large_finite_weights_are_not_infinite(tmp_path: Path) -> None:
    folder = copy("saelens_standard", tmp_path)
    edit_weights(folder, lambda weights: weights.update(b_enc=torch.full((256,), -3e38)))
    assert load_sae(folder).d_sae == 256


def test_no_features(tmp_path: Path) -> None:
    folder = copy("saelens_standard", tmp_path)
    edit_config(folder, d_sae=0)
    edit_weights(
        folder,
        lambda weights: weights.update(
            W_enc=torch.zeros(48, 0), W_dec=torch.zeros(0, 48), b_enc=torch.zeros(0)
        ),
    )
    assert "no features" in refused(folder)


@pytest.mark.parametrize(
    ("tensor", "shape", "both"),
    [
        ("W_dec", (255, 48), ("256", "W_dec [255, 48]")),
        ("W_dec", (256, 47), ("48", "W_dec [256, 47]")),
        ("W_enc", (48, 300), ("cfg.json d_sae", "W_enc [48, 300]")),
        ("b_enc", (250,), ("256", "b_enc [250]")),
        ("b_dec", (1, 48), ("b_dec has shape [1, 48]", "[d_in]")),
    ],
)
def test_contradictory_shapes_name_both(
    tmp_path: Path, tensor: str, shape: tuple[int, ...], both: tuple[str, str]
) -> None:
    folder = copy("saelens_standard", tmp_path)
    edit_weights(folder, lambda weights: weights.update({tensor: torch.zeros(shape)}))
    message = refused(folder)
    assert all(part in message for part in both)


def test_config_contradicts_sparsify_weights(tmp_path: Path) -> None:
    folder = copy("sparsify_topk", tmp_path)
    edit_config(folder, num_latents=0, expansion_factor=32)
    message = refused(folder)
    assert "1536" in message
    assert "256" in message


def test_missing_tensor_names_what_is_there(tmp_path: Path) -> None:
    folder = copy("saelens_jumprelu", tmp_path)
    edit_weights(folder, lambda weights: weights.__delitem__("threshold"))
    message = refused(folder)
    assert "'threshold'" in message
    assert "W_enc" in message


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\x01"])
def test_broken_config(tmp_path: Path, content: str) -> None:
    folder = copy("saelens_standard", tmp_path)
    (folder / "cfg.json").write_text(content)
    assert "cfg.json" in refused(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("saelens_topk", {"k": "eight"}),
        ("saelens_standard", {"metadata": ["hook"]}),
        ("saelens_standard", {"d_in": "48"}),
        ("saelens_standard", {"d_in": 48.5}),
        ("sparsify_topk", {"k": "eight"}),
        ("sparsify_topk", {"expansion_factor": None}),
        ("sparsify_topk", {"d_in": [48]}),
    ],
)
def test_nonsense_in_the_config(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    folder = copy(name, tmp_path)
    edit_config(folder, **changes)
    assert str(folder) in refused(folder)


def test_missing_config(tmp_path: Path) -> None:
    folder = copy("saelens_standard", tmp_path)
    (folder / "cfg.json").unlink()
    assert "cfg.json" in refused(folder)


def test_unrecognized_folder_says_what_was_found_and_needed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "src").mkdir()
    message = refused(tmp_path)
    assert "README.md" in message
    assert "src/" in message
    for needed in ("sae_weights.safetensors", "params.npz", "ae.pt", "hyperparams.json"):
        assert needed in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "it holds nothing" in refused(tmp_path)


def test_several_saes_are_listed(tmp_path: Path) -> None:
    for name in ("saelens_standard", "sparsify_topk"):
        copy(name, tmp_path)
    message = refused(tmp_path)
    assert "holds 2 SAEs" in message
    assert "saelens_standard/sae_weights.safetensors" in message
    assert "sparsify_topk/sae.safetensors" in message


def test_several_torch_files_in_one_folder_are_listed(tmp_path: Path) -> None:
    for layer in range(3):
        torch.save({"pre_bias": torch.zeros(2)}, tmp_path / f"{layer}.pt")
    message = refused(tmp_path)
    assert "holds 3 SAEs" in message
    assert "2.pt" in message


def test_one_sae_further_down_is_named(tmp_path: Path) -> None:
    copy("saelens_standard", tmp_path / "a" / "b")
    assert "a/b/saelens_standard/sae_weights.safetensors" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pt", {"weight": torch.zeros(2)}),
        ("model.pt", [torch.zeros(2)]),
        ("model.pth", {}),
    ],
)
def test_torch_file_that_is_no_sae(tmp_path: Path, name: str, content: Any) -> None:
    torch.save(content, tmp_path / name)
    assert name in refused(tmp_path)


def test_other_files(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "weight" in refused(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("no")
    assert "notes.txt" in refused(tmp_path / "notes.txt")
    assert "no such file" in refused(tmp_path / "nowhere")


def test_wrong_inputs() -> None:
    sae = load_sae(FIXTURES / "saelens_standard_layernorm")
    with pytest.raises(SaeError, match=r"reads \[\.\.\., 48\] inputs, not \[3, 47\]"):
        sae.encode(torch.zeros(3, 47))
    with pytest.raises(SaeError, match=r"decodes \[\.\.\., 256\]"):
        sae.decode(torch.zeros(3, 48))
    with pytest.raises(SaeError, match="normalized input"):
        sae.decode(torch.zeros(3, 256))
