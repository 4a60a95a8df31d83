"""The trained SAE on disk, in SAELens v6's JumpReLU layout, and its plain formula."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.demo_sae.activations import CONTEXT_SIZE
from examples.demo_sae.batchtopk import Trained

SAE_LENS_VERSION = "6.54.12"


@dataclass(frozen=True)
class SavedSAE:
    """JumpReLU with the decoder bias subtracted from the input.

        z = (x - b_dec) W_enc + b_enc      a = z where z > threshold and z > 0, else 0
        x_hat = a W_dec + b_dec

    W_enc: [d, d_sae]. W_dec: [d_sae, d]. b_enc, threshold: [d_sae]. b_dec: [d]. All float32
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor

    def encode(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Codes [N, d_sae] of float32 [N, d], or only of the given features."""
        w_enc, b_enc, threshold = self.W_enc, self.b_enc, self.threshold
        if features is not None:
            w_enc, b_enc, threshold = w_enc[:, features], b_enc[features], threshold[features]
        z = (x - self.b_dec) @ w_enc + b_enc
        return z * ((z > threshold) & (z > 0))

    def decode(self, codes: Tensor) -> Tensor:
        """The reconstruction [N, d] of codes [N, d_sae]."""
        return codes @ self.W_dec + self.b_dec


def save(trained: Trained, folder: Path, layer: int, training: dict[str, Any]) -> None:
    """Write cfg.json and sae_weights.safetensors.

    The matrices are stored in float16 to halve the size. Biases and thresholds, which determine
    what is active, stay in float32. `training` goes into the metadata of cfg.json.
    """
    weights = trained.weights
    d_sae, d_in = weights.encoder.shape
    tensors = {
        "W_enc": weights.encoder.t().to(torch.float16).contiguous(),
        "W_dec": weights.decoder.to(torch.float16).contiguous(),
        "b_enc": weights.encoder_bias.clone(),
        "b_dec": weights.decoder_bias.clone(),
        "threshold": torch.full((d_sae,), trained.threshold),
    }
    config = {
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": "SmolLM2-135M-Instruct",
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "context_size": CONTEXT_SIZE,
            "prepend_bos": True,
            **training,
        },
        "architecture": "jumprelu",
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    text = json.dumps(config, indent=2) + "\n"
    (folder / "cfg.json").write_text(text, encoding="utf-8")


def load(folder: Path) -> SavedSAE:
    """Read a folder written by `save`."""
    tensors = load_file(folder / "sae_weights.safetensors")
    return SavedSAE(**{name: tensor.float() for name, tensor in tensors.items()})
