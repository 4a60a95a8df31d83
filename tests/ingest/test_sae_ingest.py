"""This year's formats through a whole ingest: what is stored is a dense computation's result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import featuredb
from ingest.model.hooks import forward_to_hooks, resolve_hook
from tests.ingest.families import VOCAB, WIDTH, build
from tests.ingest.sae_files import Array, arrays, relu, safetensors, tensors, top, torch_file

F, N, LENGTH = 40, 3, 12
torch.set_num_threads(1)

IDS = np.random.default_rng(0).integers(3, VOCAB, (N, LENGTH))


def at(model: Any, name: str) -> Array:
    """What passes `name`, [tokens, width]."""
    ids = torch.from_numpy(IDS)
    point = resolve_hook(model, name)
    got = forward_to_hooks(model, [point], ids, torch.ones_like(ids))[point.name]
    return got.reshape(-1, got.shape[-1]).double().numpy()


def stored(tmp_path: Path, model: Any, sae: Path, **options: Any) -> tuple[Path, Array]:
    """The database, and its activations as [tokens, features]."""
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "a.fdb"
    featuredb.ingest(
        path,
        corpus=pa.table({"ids": IDS.tolist()}),
        tokens_column="ids",
        model=str(tmp_path / "model"),
        saes=[str(sae)],
        check=False,
        dtype="float32",
        device="cpu",
        values="float32",
        keep_bos=True,
        keep_sinks=True,
        memory="1GB",
        context_size=LENGTH,
        **options,
    )
    got = np.zeros((N * LENGTH, F))
    with featuredb.open(path) as db:
        rows = db.sql(
            "SELECT context_id, token_index, feature_id, activation FROM activations"
        ).fetchall()
    for context, token, feature, value in rows:
        got[context * LENGTH + token, feature] = value
    return path, got


def raw(d: int = WIDTH) -> dict[str, Array]:
    return arrays(W_enc=(d, F), b_enc=(F,), W_dec=(F, d), b_dec=(d,))


def saelens(folder: Path, hook: str) -> tuple[Path, Callable[[Any], Array]]:
    w = raw()
    cfg = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": F,
        "metadata": {
            "hook_name": hook,
            "prepend_bos": False,
            "model_from_pretrained_kwargs": {"center_writing_weights": True},
        },
    }
    file = safetensors(folder / "sae_weights.safetensors", w, cfg=cfg)

    def right(model: Any) -> Array:
        x = at(model, hook)
        if hook.endswith("hook_z"):
            layer = model.transformer.h[int(hook.split(".")[1])]
            x = x - layer.attn.c_attn.bias[-WIDTH:].detach().double().numpy()
        else:
            x = x - x.mean(axis=1, keepdims=True)
        return relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])

    return file.parent, right


@pytest.mark.parametrize(
    "hook", ["blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out", "blocks.1.attn.hook_z"]
)
def test_centered_weights(tmp_path: Path, hook: str) -> None:
    model = build("gpt2")
    sae, right = saelens(tmp_path / "sae", hook)
    path, got = stored(tmp_path, model, sae)
    np.testing.assert_allclose(got, right(model), atol=1e-3)
    # run again later, the SAE is attached in the same way
    assert featuredb.verify(path, source=N).ok


def test_centered_weights_of_rms_models_are_refused(tmp_path: Path) -> None:
    sae, _ = saelens(tmp_path / "sae", "blocks.1.hook_resid_pre")
    with pytest.raises(featuredb.FeatureDBError, match="center_writing_weights"):
        stored(tmp_path, build("llama"), sae)
    assert not (tmp_path / "a.fdb" / "CURRENT").exists()


def test_kissane(tmp_path: Path) -> None:
    model, hook = build("gpt2"), "blocks.2.attn.hook_z"
    w = raw()
    file = torch_file(tmp_path / "z_v9.pt", tensors(w), z_v9_cfg={"act_name": hook})
    _, got = stored(tmp_path, model, file)
    bias = model.transformer.h[2].attn.c_attn.bias[-WIDTH:].detach().double().numpy()
    z = at(model, hook) - bias
    np.testing.assert_allclose(got, relu((z - w["b_dec"]) @ w["W_enc"] + w["b_enc"]), atol=1e-3)


@pytest.mark.parametrize("rule", ["topk", "relu"])
def test_circuit_tracer(tmp_path: Path, rule: str) -> None:
    """Signed: features with nothing but negative activations are stored as such."""
    model = build("qwen3")
    w = arrays(W_enc=(F, WIDTH), b_enc=(F,), W_dec=(F, WIDTH), b_dec=(WIDTH,))
    w["b_enc"] -= 4 * (rule == "topk")
    file = safetensors(tmp_path / "set" / "layer_1.safetensors", w)
    config = {
        "model_kind": "transcoder_set",
        "activation": rule,
        "k": 5,
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
    }
    (file.parent / "config.yaml").write_text(yaml.safe_dump(config))
    path, got = stored(tmp_path, model, file.parent / "layer_1")
    x = at(model, "model.layers.1.post_attention_layernorm.output")
    z = x @ w["W_enc"].T + w["b_enc"]
    right = top(z, 5) if rule == "topk" else relu(z)
    assert (right < 0).any() == (rule == "topk")
    np.testing.assert_allclose(got, right, atol=1e-3)
    assert featuredb.verify(path, source=N).ok
    with featuredb.open(path) as db:
        (sae,) = db.sql("SELECT hook, hook_out, format FROM saes").fetchall()
        assert sae == ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out", "circuit_tracer")
        active = int(np.argmax((right != 0).sum(axis=0)))
        column = right[:, active]
        sql = "SELECT max_activation FROM features WHERE feature_id = ?"
        ((most,),) = db.sql(sql, [active]).fetchall()
        assert most == pytest.approx(column[column != 0].max(), abs=1e-3)
        assert len(db.top_contexts(active, k=N).arrow()) > 0
