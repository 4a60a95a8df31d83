"""The encoder of an SAE: a product, then the activation rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ingest.sae.activations import Activation
from ingest.sae.codes import SparseCodes
from ingest.sae.normalize import Normalization, normalize


@dataclass(frozen=True, eq=False)
class Encoder:
    """z = (norm(x) - b_pre) W_enc + b_enc, then the activation rule."""

    W_enc: Tensor
    """[d_in, d_sae]"""
    activation: Activation
    b_enc: Tensor | None = None
    """[d_sae]; None where the activation carries its own biases (gated)."""
    b_pre: Tensor | None = None
    """[d_in]: what is subtracted from the input; None for nothing."""
    normalization: Normalization = "none"

    def row_dtype(self, given: torch.dtype) -> torch.dtype:
        """What rows of a dtype are converted to before `centered`."""
        return self.W_enc.dtype

    def centered(self, x: Tensor) -> Tensor:
        """norm(x) - b_pre [N, d_in], which W_enc multiplies."""
        x = normalize(self.normalization, x)
        return x if self.b_pre is None else x - self.b_pre

    def pre_activations(self, x: Tensor) -> Tensor:
        """z [N, d_sae] from x [N, d_in], both in the dtype of W_enc."""
        return self.product(self.centered(x))

    def product(self, x: Tensor) -> Tensor:
        """z [N, d_sae] from what `centered` gives."""
        return x @ self.W_enc if self.b_enc is None else torch.addmm(self.b_enc, x, self.W_enc)

    def active(self, x: Tensor, centered: Tensor) -> SparseCodes:
        """What is active in x [N, d_in], of which `centered` is at most `largest_input`."""
        return self.activation.sparse(self.product(centered))

    @cached_property
    def largest_input(self) -> float:
        """The norm that a row of `centered` may have without any sum of its products overflowing.

        Each partial sum of z is at most ‖x‖ ‖w‖ + |b|, by Cauchy and Schwarz. Half of the dtype's
        range is left for rounding.
        """
        return self.largest_norm(
            0.0 if self.b_enc is None else float(self.b_enc.float().abs().max())
        )

    def largest_norm(self, bias: float) -> float:
        """`largest_input` for a bias of at most that."""
        norm = float(self.W_enc.float().norm(dim=0).max()) if self.W_enc.numel() else 0.0
        return (torch.finfo(self.W_enc.dtype).max / 2 - bias) / max(norm, 1e-30)
