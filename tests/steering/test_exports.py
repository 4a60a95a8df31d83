"""Edits as files: read back by the peers' own code, and the same logits where they are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from featuredb import Database
from featuredb.cli import main
from featuredb.errors import FeatureDBError


def _directions(db: Database) -> Any:
    return 2.5 * db.direction("early/3") - db.direction("early/7")


EDITS = ["early/3+=2.5", "early/7=-1"]


def test_safetensors(db: Database, tmp_path: Path) -> None:
    db.export_edits([*EDITS, "late/2+=4"], tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="np") as file:
        facts = file.metadata()
        vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    np.testing.assert_allclose(vectors["blocks.1.hook_resid_post"], _directions(db), rtol=1e-6)
    np.testing.assert_allclose(vectors["blocks.2.hook_resid_post"], 4 * db.direction("late/2"))
    assert facts["model_sha256"] == db.snapshot.model.sha256
    assert len(json.loads(facts["edits"])) == 3
    places = json.loads(facts["places"])
    assert places["blocks.1.hook_resid_post"] == "model.layers.1.output"


def test_a_control_vector_of_llama_cpp(db: Database, tmp_path: Path) -> None:
    """Named and typed as llama.cpp's common_control_vector_load wants it."""
    db.export_edits([*EDITS, "late/2+=4"], tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {"direction.1", "direction.2"}
    assert tensors["direction.1"].tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_allclose(tensors["direction.1"].data, _directions(db), rtol=1e-6)
    fields = reader.fields
    assert bytes(fields["general.architecture"].parts[-1]) == b"controlvector"
    assert bytes(fields["controlvector.model_hint"].parts[-1]) == b"llama"
    assert int(fields["controlvector.layer_count"].parts[-1][0]) == 2


def _as_lm_eval(model: Any, path: Path, ids: torch.Tensor) -> Any:
    """What `steered` of lm-evaluation-harness 0.4.13 does with such a file."""
    handles = []
    for name, entry in torch.load(path, weights_only=True).items():

        def hook(_: Any, __: Any, output: Any, e: Any = entry) -> Any:
            acts = output[0] if isinstance(output, tuple) else output
            v, c = e["steering_vector"].to(acts.device), e["steering_coefficient"]
            if e["action"] == "add":
                new = acts + v * c
            else:
                unit = v / v.norm()
                new = acts - (acts * unit).sum(-1, keepdim=True) * unit + unit * c
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handles.append(model.base_model.get_submodule(name).register_forward_hook(hook))
    try:
        return model(input_ids=ids).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("edits", "method"),
    [
        (["early/3+=2.5", "early/7+=-1"], "code"),
        (["early/3+=2.5", "late/7+=3"], "direction"),
        (["early/3=2.5", "late/7=0"], "project"),
    ],
)
def test_a_steering_file_gives_the_same_logits(
    db: Database, tmp_path: Path, edits: list[str], method: str
) -> None:
    path = tmp_path / "v.pt"
    db.export_edits(edits, path, method=method)
    with db.intervene(edits, method=method) as model:
        ids = torch.tensor([[0, 5, 300, 301, 7]], device=model.device)
        right = model(input_ids=ids).logits
    assert (_as_lm_eval(model, path, ids) - right).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("edits", "name", "method", "words"),
    [
        (["early/3*=2"], "v.pt", "code", "takes away"),
        (["early/3=0"], "v.gguf", "code", "takes away"),
        (["early/3=1 @ generated"], "v.gguf", "code", "at some tokens only"),
        (["early/3=1"], "v.gguf", "project", "only a .pt file"),
        (["early/3=1", "early/4=2"], "v.pt", "project", "one edit at each place"),
        (["early/3=1"], "v.bin", "code", "does not say what it is to be"),
        (["early/3=1"], "nowhere/v.pt", "code", "nowhere"),
    ],
)
def test_what_a_file_cannot_say(
    db: Database, tmp_path: Path, edits: list[str], name: str, method: str, words: str
) -> None:
    with pytest.raises(FeatureDBError, match=words):
        db.export_edits(edits, tmp_path / name, method=method)
    assert not list(tmp_path.iterdir())


def test_the_command(steerable: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    call = ["steer", str(steerable), "--set", "early/3+=2", "--export", str(path)]
    ran = CliRunner().invoke(main, call)
    assert ran.exit_code == 0, ran.output
    assert gguf.GGUFReader(path).tensors[0].name == "direction.1"
    assert CliRunner().invoke(main, [*call, "a prompt"]).exit_code == 2
