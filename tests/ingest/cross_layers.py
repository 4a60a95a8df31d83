"""Sets of SAEs that write to several layers together and explain a small model; an oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from tests.tiny import WIDTH, tiny_documents, tiny_model

Floats = npt.NDArray[np.float32]
FEATURES = 2 * WIDTH

# kind -> (folder below the release's root, layers, where it reads and writes in a layer)
CLT, GEMMA_CLT, CROSSCODER = "circuit_tracer", "gemma_clt", "gemma_crosscoder"
FOLDERS = {
    CLT: "owner-clt",
    GEMMA_CLT: "gemma-scope-2-1b-pt/clt/width_1k_l0_medium_affine",
    CROSSCODER: "gemma-scope-2-1b-pt/crosscoder/layer_0_2_3_width_1k_l0_big",
}
LAYERS = {CLT: [0, 1, 2], GEMMA_CLT: [0, 1, 2, 3], CROSSCODER: [0, 2, 3]}


@dataclass(frozen=True)
class Set:
    """A set in memory. Everything is by place: x W_enc + b_enc, and what is written from and to."""

    kind: str
    W_enc: list[Floats]
    b_enc: list[Floats]
    threshold: list[Floats]
    W_dec: list[list[Floats]]
    """W_dec[i][o]: what place i writes to place o, [f, d]."""
    b_dec: list[Floats]
    skip: list[Floats]
    """x_o @ skip[o] is added to what is written to o."""

    @property
    def size(self) -> int:
        return len(self.W_enc)

    def acts(self, x: Sequence[Floats]) -> list[Floats]:
        """By place. circuit-tracer keeps what lies between a negative threshold and zero."""
        found = []
        for x_i, W, b, threshold in zip(x, self.W_enc, self.b_enc, self.threshold, strict=True):
            z = x_i @ W + b
            on = (z > threshold) if self.kind == CLT else (z > threshold) & (z > 0)
            found.append(np.where(on, z, 0).astype(np.float32))
        return found

    def rebuilt(self, x: Sequence[Floats]) -> list[Floats]:
        """By place that is written to."""
        acts = self.acts(x)
        return [
            self.b_dec[o]
            + x[o] @ self.skip[o]
            + sum(acts[i] @ self.W_dec[i][o] for i in range(self.size))
            for o in range(self.size)
        ]

    def save(self, root: Path) -> Path:
        """Write the files of its release below `root`."""
        folder = root / FOLDERS[self.kind]
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(self.size):
            stacked = np.stack(self.W_dec[i], axis=1)  # [f, places, d]
            if self.kind == CLT:
                assert not stacked[:, :i].any()
                tensors = {
                    f"W_enc_{i}": self.W_enc[i].T,
                    f"b_enc_{i}": self.b_enc[i],
                    f"b_dec_{i}": self.b_dec[i],
                    f"threshold_{i}": self.threshold[i],
                }
                _save(folder / f"W_enc_{i}.safetensors", tensors)
                _save(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": stacked[:, i:]})
                continue
            tensors = {
                "w_enc": self.W_enc[i],
                "b_enc": self.b_enc[i],
                "threshold": self.threshold[i],
                "w_dec": stacked,
                "b_dec": self.b_dec[i],
            }
            if self.kind == GEMMA_CLT:
                tensors["affine_skip_connection"] = self.skip[i]
            _save(folder / f"params_layer_{i}.safetensors", tensors)
        if self.kind == CLT:
            lines = ("model_kind: cross_layer_transcoder", "model_name: owner/tiny")
            hooks = ("feature_input_hook: hook_resid_mid", "feature_output_hook: hook_mlp_out")
            (folder / "config.yaml").write_text("\n".join([*lines, *hooks]))
        else:
            told = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}
            (folder / "config.json").write_text(json.dumps(told))
        return folder


def _save(file: Path, tensors: dict[str, Floats]) -> None:
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, file)


def model_for(kind: str, folder: Path) -> Path:
    """A tiny Llama for circuit-tracer, else a Gemma 3 of four layers."""
    tiny_model(folder)
    if kind != CLT:
        torch.manual_seed(5)
        config = Gemma3TextConfig(
            vocab_size=608,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
        Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def states(kind: str, model: Any, ids: Sequence[int]) -> tuple[list[Floats], list[Floats]]:
    """(x, y) by place, float32 [tokens, d]: what is read and what should be written, by hooks of
    torch alone."""
    kept: dict[tuple[str, int], Floats] = {}
    handles = []

    def keep(module: Any, name: str, layer: int, of_input: bool = False) -> None:
        def hook(_: Any, given: Any, output: Any) -> None:
            value = given[0] if of_input else output
            value = value[0] if isinstance(value, tuple) else value
            kept[name, layer] = value.detach()[0].cpu().numpy().copy()

        handles.append(module.register_forward_hook(hook))

    for layer in LAYERS[kind]:
        block = model.model.layers[layer]
        if kind == CLT:
            keep(block.post_attention_layernorm, "x", layer, of_input=True)
            keep(block.mlp, "y", layer)
        elif kind == GEMMA_CLT:
            keep(block.pre_feedforward_layernorm, "x", layer)
            keep(block.post_feedforward_layernorm, "y", layer)
        else:
            keep(block, "x", layer)
            keep(block, "y", layer)
    with torch.no_grad():
        model(torch.tensor([list(ids)], device=model.device))
    for handle in handles:
        handle.remove()
    return [kept["x", each] for each in LAYERS[kind]], [kept["y", each] for each in LAYERS[kind]]


def fitted(kind: str, folder: Path, *, signed: bool = True) -> Set:
    """A set that explains the model in `folder`, its decoders by least squares.

    signed: some thresholds are negative.
    """
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = []
    for document in tiny_documents(40, seed=9):
        ids = tokenizer(document["text"], add_special_tokens=False).input_ids[:31]
        if ids:
            pieces.append(states(kind, model, ids if kind == CLT else [0, *ids]))
    skipped = int(kind != CLT)
    n = len(LAYERS[kind])
    x = [np.concatenate([piece[0][i][skipped:] for piece in pieces]) for i in range(n)]
    y = [np.concatenate([piece[1][i][skipped:] for piece in pieces]) for i in range(n)]
    rng = np.random.default_rng(3)
    axes = [np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] for _ in range(n)]
    W_enc = [np.concatenate([q, -q], axis=1).astype(np.float32) for q in axes]
    b_enc = [(-x[i].mean(0) @ W_enc[i]).astype(np.float32) for i in range(n)]
    spread = [float((x[i] @ W_enc[i] + b_enc[i]).std()) for i in range(n)]
    low = -0.3 if signed else 0.05
    threshold = [(s * rng.uniform(low, 0.3, FEATURES)).astype(np.float32) for s in spread]
    scale = 0.3 if kind == GEMMA_CLT else 0.0
    skip = [(scale * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32) for _ in range(n)]
    none = [[np.zeros((FEATURES, WIDTH), np.float32) for _ in range(n)] for _ in range(n)]
    empty = [np.zeros(WIDTH, np.float32) for _ in range(n)]
    made = Set(kind, W_enc, b_enc, threshold, none, empty, skip)
    acts = made.acts(x)
    for o in range(n):
        feeders = range(n) if kind == CROSSCODER else range(o + 1)
        inputs = np.concatenate([*(acts[i] for i in feeders), np.ones((len(y[o]), 1))], axis=1)
        penalty = 1e-3 * np.eye(inputs.shape[1]) * np.square(inputs).mean()
        solved = np.linalg.solve(
            inputs.T @ inputs + penalty, inputs.T @ (y[o] - x[o] @ skip[o])
        ).astype(np.float32)
        for place, i in enumerate(feeders):
            made.W_dec[i][o] = solved[place * FEATURES : (place + 1) * FEATURES]
        made.b_dec[o] = solved[-1]
    return made
