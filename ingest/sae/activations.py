"""Activation rules: which features are active, given the pre-activations.

Each is a frozen dataclass with two views of one rule, for z [N, d_sae] in the SAE's dtype:
`dense(z)` gives the activations [N, d_sae], zero where inactive; `sparse(z)` gives exactly the
non-zeros of `dense(z)`. `launched(z, …)` gives them too, on an accelerator, without waiting for how
many they are. None of them looks across the rows of a batch, so a token's activations
do not depend on what else is in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ingest.sae.codes import LaunchedCodes, SparseCodes, above, compact, gather, in_rows, select


@dataclass(frozen=True)
class ReLU:
    """max(z, 0)."""

    def dense(self, z: Tensor) -> Tensor:
        return torch.relu(z)

    def sparse(self, z: Tensor) -> SparseCodes:
        return above(z, z.new_zeros(()))

    def launched(self, z: Tensor, keep: Tensor | None, capacity: int) -> LaunchedCodes:
        return compact(z, z > 0, keep, capacity)


@dataclass(frozen=True)
class JumpReLU:
    """z · 1[z > θ] · 1[z > 0] (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Also what BatchTopK and Matryoshka SAEs do at inference, with the scalar θ fitted in training.
    """

    threshold: Tensor
    """θ: [d_sae], or [] for one threshold shared by every feature."""
    clamp: bool = True
    """False leaves out 1[z > 0]: a negative θ then lets negative values through."""

    def _floor(self) -> Tensor:
        return self.threshold.clamp_min(0) if self.clamp else self.threshold

    def dense(self, z: Tensor) -> Tensor:
        return torch.where(z > self._floor(), z, torch.zeros_like(z))

    def sparse(self, z: Tensor) -> SparseCodes:
        return above(z, self._floor()) if self.clamp else select(z, self._active(z))

    def launched(self, z: Tensor, keep: Tensor | None, capacity: int) -> LaunchedCodes:
        return compact(z, self._active(z), keep, capacity)

    def _active(self, z: Tensor) -> Tensor:
        return z > self._floor() if self.clamp else (z > self.threshold) & (z != 0)


@dataclass(frozen=True)
class TopK:
    """The k largest of each row, the rest zero (Gao et al. 2024, arXiv 2406.04093)."""

    k: int
    relu: bool = True
    """False keeps negative values among the k (OpenAI's `postact_fn: Identity`)."""
    by_magnitude: bool = False
    """Choose by |z| and keep the sign (AbsTopK, arXiv 2510.00404); `relu` must be False."""
    weights: Tensor | None = None
    """[d_sae]: choose by z times this, and keep z; None for all the same."""

    def _top(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_magnitude or self.weights is not None:
            rank = z if self.weights is None else z * self.weights
            rank = rank.abs() if self.by_magnitude else rank
            indices = rank.topk(self.k, dim=1, sorted=False).indices
            values = z.gather(1, indices)
        else:
            values, indices = z.topk(self.k, dim=1, sorted=False)
        return indices, values.relu() if self.relu else values

    def dense(self, z: Tensor) -> Tensor:
        indices, values = self._top(z)
        return torch.zeros_like(z).scatter_(1, indices, values)

    def sparse(self, z: Tensor) -> SparseCodes:
        return gather(*self._top(z))

    def launched(self, z: Tensor, keep: Tensor | None, capacity: int) -> LaunchedCodes:
        return in_rows(*self._top(z))


@dataclass(frozen=True)
class GroupMax:
    """The largest positive value in each of k equal groups of neighboring features."""

    k: int

    def _top(self, z: Tensor) -> tuple[Tensor, Tensor]:
        groups = torch.relu(z).reshape(len(z), self.k, z.shape[1] // self.k)
        values, within = groups.max(dim=2)
        starts = torch.arange(self.k, device=z.device) * groups.shape[2]
        return within + starts, values

    def dense(self, z: Tensor) -> Tensor:
        indices, values = self._top(z)
        return torch.zeros_like(z).scatter_(1, indices, values)

    def sparse(self, z: Tensor) -> SparseCodes:
        return gather(*self._top(z))

    def launched(self, z: Tensor, keep: Tensor | None, capacity: int) -> LaunchedCodes:
        return in_rows(*self._top(z))


@dataclass(frozen=True)
class Gated:
    """1[z + b_gate > 0] · max(z · e^r_mag + b_mag, 0) (Rajamanoharan et al., arXiv 2404.16014).

    z is x̂ W_enc with no bias: the gate and the magnitude share the encoder matrix, so one
    product serves both.
    """

    b_gate: Tensor
    """[d_sae]"""
    b_mag: Tensor
    """[d_sae]"""
    scale: Tensor
    """e^r_mag: [d_sae]"""

    def _magnitude(self, z: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = z * self.scale + self.b_mag
        return magnitude, (z + self.b_gate > 0) & (magnitude > 0)

    def dense(self, z: Tensor) -> Tensor:
        magnitude, active = self._magnitude(z)
        return torch.where(active, magnitude, torch.zeros_like(z))

    def sparse(self, z: Tensor) -> SparseCodes:
        return select(*self._magnitude(z))

    def launched(self, z: Tensor, keep: Tensor | None, capacity: int) -> LaunchedCodes:
        return compact(*self._magnitude(z), keep, capacity)


Activation = ReLU | JumpReLU | TopK | GroupMax | Gated
