"""A BatchTopK sparse autoencoder trained on a CPU.

    z = W_enc (x - b_dec) + b_enc            a = z where z is among the batch's k x B largest
    x_hat = W_dec a + b_dec                  and positive, else 0

(Bussmann, Leask and Nanda 2024.) At inference one global threshold replaces the batch,
so the saved SAE is a JumpReLU SAE.

A step has two dense products, both in bfloat16: one selects the active features, the other is
the gradient of their values. Everything else uses only the k active features per token, as
sparse matrices, which is several times faster than dense gradients. The gradients are therefore
explicit. A test compares them with autograd.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Settings of one training run. `seed` fixes initial weights and data order."""

    features: int = 8192
    k: int = 32
    epochs: int = 8
    batch: int = 4096
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    decay_fraction: float = 0.3
    aux_weight: float = 1 / 32
    aux_k: int = 256
    dead_after_tokens: int = 400_000
    seed: int = 0


@dataclass(frozen=True)
class Active:
    """The active features of a batch of B tokens, in order of token, then feature.

    token, feature: int64 [n]. value: float32 [n]. cut: the smallest selected value
    """

    token: Tensor
    feature: Tensor
    value: Tensor
    cut: float


@dataclass
class Weights:
    """The parameters, for inputs scaled to a mean squared norm of d.

    encoder, decoder: float32 [d_sae, d] (decoder rows have norm 1) encoder_bias: float32 [d_sae].
    decoder_bias: float32 [d]
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor

    def all(self) -> list[Tensor]:
        """The four parameters, in the order `gradients` uses."""
        return [self.encoder, self.decoder, self.encoder_bias, self.decoder_bias]


@dataclass(frozen=True)
class Trained:
    """A finished run: weights for raw residuals, the threshold and the training log."""

    weights: Weights
    threshold: float
    seconds: float
    tokens: int
    log: list[dict[str, float]] = field(default_factory=list)


def initial_weights(mean: Tensor, features: int, generator: torch.Generator) -> Weights:
    """Random unit decoder rows, the encoder equal to them, the bias at the mean input."""
    decoder = torch.randn(features, len(mean), generator=generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    return Weights(decoder.clone(), decoder, torch.zeros(features), mean.clone())


def pre_activations(x: Tensor, weights: Weights) -> Tensor:
    """z of the module's formula for float32 [B, d], computed in bfloat16 [B, d_sae]."""
    centered = (x - weights.decoder_bias).bfloat16()
    return torch.addmm(weights.encoder_bias.bfloat16(), centered, weights.encoder.bfloat16().t())


def batch_top_k(z: Tensor, count: int, guess: float) -> Active:
    """The `count` largest positive entries of z [B, d_sae], ties by position.

    `guess` is a lower bound from earlier batches, tried first: selecting from the few entries above
    it is much faster than sorting all. If too few are above it, it is halved, then dropped.
    """
    flat = z.view(-1)
    for bound in (guess, guess / 2, 0.0):
        # numpy skips runs of False eight at a time. torch.nonzero does not.
        where = torch.from_numpy(np.flatnonzero((flat > bound).numpy()))
        if len(where) >= count:
            break
    values = flat[where].float()
    if len(where) > count:
        keep = values.topk(count, sorted=False).indices.sort().values
        where, values = where[keep], values[keep]
    cut = float(values.min()) if len(values) else 0.0
    token = where // z.shape[1]
    return Active(token, where - token * z.shape[1], values, cut)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A CSR matrix from entries sorted by row."""
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows, minlength=shape[0]), 0, out=starts[1:])
    with warnings.catch_warnings():
        # torch calls its CSR support beta. Tests compare these products with dense ones.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def gradients(x: Tensor, active: Active, weights: Weights) -> tuple[list[Tensor], Tensor]:
    """The gradients of mean over tokens of ||x - x_hat||^2, and the residual x - x_hat [B, d].

    The set of active features is constant, as in every top-k autoencoder.
    """
    shape = (len(x), len(weights.encoder))
    codes = _sparse(active.token, active.feature, active.value, shape)
    residual = x - weights.decoder_bias - codes @ weights.decoder
    slope = residual * (-2 / len(x))
    # [B, d_sae] in bfloat16, of which only the active entries are read.
    all_values = slope.bfloat16() @ weights.decoder.bfloat16().t()
    by_value = all_values[active.token, active.feature].float()
    by_feature = active.feature.argsort(stable=True)
    feature, token = active.feature[by_feature], active.token[by_feature]
    turned = shape[1], shape[0]
    for_decoder = _sparse(feature, token, active.value[by_feature], turned) @ slope
    centered = x - weights.decoder_bias
    for_encoder = _sparse(feature, token, by_value[by_feature], turned) @ centered
    for_encoder_bias = torch.zeros(shape[1]).index_add_(0, active.feature, by_value)
    for_decoder_bias = slope.sum(0) - for_encoder_bias @ weights.encoder
    return [for_encoder, for_decoder, for_encoder_bias, for_decoder_bias], residual


def add_aux_gradients(
    grads: list[Tensor],
    z: Tensor,
    x: Tensor,
    residual: Tensor,
    dead: Tensor,
    run: Settings,
    weights: Weights,
) -> None:
    """Add the gradients of AuxK (Gao et al. 2024): dead features reconstruct the residual.

    Only the first 1,024 tokens of the batch are used, which is enough to revive features.
    """
    rows = min(1024, len(x))
    chosen = z[:rows].index_select(1, dead).float()
    top = chosen.topk(min(run.aux_k, len(dead)), dim=1)
    codes = torch.zeros_like(chosen).scatter_(1, top.indices, top.values.relu())
    decoder = weights.decoder[dead]
    error = codes @ decoder - residual[:rows]
    # The residual shrinks during training, so the loss is relative to its size.
    scale = run.aux_weight * float(x.square().sum(1).mean() / residual.square().sum(1).mean())
    slope = error * (2 * scale / rows)
    by_value = (slope @ decoder.t()) * (codes > 0)
    grads[0].index_add_(0, dead, by_value.t() @ (x[:rows] - weights.decoder_bias))
    grads[1].index_add_(0, dead, codes.t() @ slope)
    grads[2].index_add_(0, dead, by_value.sum(0))


def learning_rate(step: int, steps: int, run: Settings) -> float:
    """Linear warm-up, a plateau, and a linear decay to zero over the last part of the run."""
    rising = (step + 1) / run.warmup_steps
    falling = (steps - step) / max(1.0, steps * run.decay_fraction)
    return run.learning_rate * min(1.0, rising, falling)


def train(data: Tensor, rows: Tensor, run: Settings) -> Trained:
    """Train on `data[rows]`, with data bfloat16 [tokens, d] raw residuals and rows int64.

    Returns weights for raw residuals: the input scale is folded into the biases and the
    threshold (activations are in residual units, decoder rows keep norm 1).
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(run.seed)
    sample = data[rows[torch.randperm(len(rows), generator=generator)[:100_000]]].float()
    scale = math.sqrt(data.shape[1] / float(sample.square().sum(1).mean()))
    weights = initial_weights(sample.mean(0) * scale, run.features, generator)
    optimizer = torch.optim.Adam(weights.all(), lr=run.learning_rate, fused=True)
    idle = torch.zeros(run.features, dtype=torch.int64)
    steps = run.epochs * (len(rows) // run.batch)
    log: list[dict[str, float]] = []
    order = rows
    cut, cuts = 0.0, []
    for step in range(steps):
        offset = step % (len(rows) // run.batch)
        if offset == 0:
            order = rows[torch.randperm(len(rows), generator=generator)]
        x = data[order[offset * run.batch : (offset + 1) * run.batch]].float() * scale
        z = pre_activations(x, weights)
        active = batch_top_k(z, run.k * len(x), 0.9 * cut)
        cut = active.cut
        grads, residual = gradients(x, active, weights)
        idle += len(x)
        idle[active.feature] = 0
        dead = (idle > run.dead_after_tokens).nonzero().squeeze(1)
        if len(dead) and run.aux_weight:
            add_aux_gradients(grads, z, x, residual, dead, run, weights)
        # A step along a unit row only changes its norm, which is restored below.
        grads[1] -= (grads[1] * weights.decoder).sum(1, keepdim=True) * weights.decoder
        for parameter, grad in zip(weights.all(), grads, strict=True):
            parameter.grad = grad
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, run)
        optimizer.step()
        weights.decoder /= weights.decoder.norm(dim=1, keepdim=True)
        if step >= steps - 100:
            cuts.append(cut)
        if step % 100 == 99 or step == steps - 1:
            fvu = float(residual.square().sum() / (x - x.mean(0)).square().sum())
            seconds = time.perf_counter() - started
            log.append({"step": step + 1, "fvu": fvu, "dead": len(dead), "seconds": seconds})
            rate = (step + 1) * run.batch / seconds
            print(
                f"step {step + 1}/{steps}  FVU {fvu:.4f}  dead {len(dead)}  cut {cut:.3f}  "
                f"{rate:,.0f} tokens/s",
                flush=True,
            )
    raw = Weights(
        weights.encoder,
        weights.decoder,
        weights.encoder_bias / scale,
        weights.decoder_bias / scale,
    )
    threshold = float(np.mean(cuts)) / scale
    return Trained(raw, threshold, time.perf_counter() - started, steps * run.batch, log)
