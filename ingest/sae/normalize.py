"""Normalization of each token's activation vector, before the encoder and after the decoder.

A dataset-wide scale (`expected_average_only_in`) is not here: it is folded into the weights when
an SAE is loaded, once. The rest depends on the token itself, so undoing it needs the token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["none", "constant_norm_rescale", "layer_norm", "center"]

LAYER_NORM_EPSILON = 1e-5


def normalize(kind: Normalization, x: Tensor) -> Tensor:
    """x̂ [N, d_in] from x [N, d_in].

    `constant_norm_rescale`: x·√d/‖x‖ (a zero vector stays zero). `layer_norm`: (x-μ)/(s+1e-5),
    with s the unbiased deviation; both as SAELens and OpenAI's sparse_autoencoder define them.
    `center`: x-μ, the residual stream as TransformerLens's `center_writing_weights` leaves it.
    """
    if kind == "constant_norm_rescale":
        return x * _rescaling(x)
    if kind == "layer_norm":
        mean, deviation = _moments(x)
        return (x - mean) / (deviation + LAYER_NORM_EPSILON)
    if kind == "center":
        return x - x.mean(dim=-1, keepdim=True)
    return x


def undo(kind: Normalization, y: Tensor, x: Tensor) -> Tensor:
    """y [N, d_in], a reconstruction of normalize(kind, x), in the units of x [N, d_in].

    Layer norm is undone as its authors do it: y·s + μ, without the epsilon.
    """
    if kind == "constant_norm_rescale":
        return y / _rescaling(x)
    if kind == "layer_norm":
        mean, deviation = _moments(x)
        return y * deviation + mean
    if kind == "center":
        return y + x.mean(dim=-1, keepdim=True)
    return y


def undoing(kind: Normalization, x: Tensor) -> Tensor | None:
    """What `undo` multiplies each row of x [N, d_in] by, [N, 1]. None for nothing."""
    if kind == "constant_norm_rescale":
        return 1 / _rescaling(x)
    return _moments(x)[1] if kind == "layer_norm" else None


def _rescaling(x: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True)
    scaled: Tensor = x.shape[-1] ** 0.5 / norm.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    return scaled


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(dim=-1, keepdim=True)
    # not x.std(): it warns on an empty batch
    variance = (x - mean).pow(2).sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
    return mean, variance.sqrt()
