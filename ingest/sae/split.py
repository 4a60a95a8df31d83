"""An encoder's product on the tensor cores of a GPU, with weights of 24 bits.

The residuals of a bfloat16 model are bfloat16 numbers. Float32 weights are sums of three, of 8 bits
each, so that x W is exactly the sum of three bfloat16 products. Tensor cores add these up in
float32, several times faster than float32 numbers are multiplied elsewhere, with three to five
times the rounding error (`docs/benchmarks.md`). Henry, Tang and Heinecke (2019, arXiv 1904.06376)
describe the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ingest.sae.encoder import Encoder

_MOST_PARTS = 3
_BIAS_ROWS = 8
"""As many as keep rows aligned to 16 bytes, of which the first are used."""

_BLOCK = 8_192
"""Features whose bias is folded at a time, in float64."""


@dataclass(frozen=True, eq=False)
class SplitEncoder(Encoder):
    """z = x W_enc + b for bfloat16 x, by parts. Rows of another dtype go the usual way."""

    parts: Tensor | None = None
    """bfloat16 [n (d_in + 8), d_sae]: W_enc is the sum of n blocks of d_in rows. The last rows are
    those of the bias, the zeros after them and are multiplied by ones."""
    bias_norm: float = 0.0

    @classmethod
    def of(cls, encoder: Encoder) -> SplitEncoder:
        """The same encoder, which must not normalize."""
        weights = encoder.W_enc
        parts = bfloat16_parts(weights)
        bias = folded_bias(encoder)
        rows = torch.zeros(_BIAS_ROWS, weights.shape[1], device=weights.device)
        for number, part in enumerate(bfloat16_parts(bias)):
            rows[number] = part
        stacked = torch.cat([*reversed(parts), rows.bfloat16()])  # the smallest first
        return cls(
            W_enc=weights,
            activation=encoder.activation,
            b_enc=encoder.b_enc,
            b_pre=encoder.b_pre,
            normalization=encoder.normalization,
            parts=stacked,
            bias_norm=float(bias.abs().max()) if bias.numel() else 0.0,
        )

    def row_dtype(self, given: torch.dtype) -> torch.dtype:
        return given if given == torch.bfloat16 else super().row_dtype(given)

    def centered(self, x: Tensor) -> Tensor:
        """x itself, as what is subtracted is in the bias."""
        return x if x.dtype == torch.bfloat16 else super().centered(x)

    def product(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().product(x)
        assert self.parts is not None
        count = (len(self.parts) - _BIAS_ROWS) // x.shape[1]
        repeated = torch.cat([x] * count + [x.new_ones(len(x), _BIAS_ROWS)], dim=1)
        if x.device.type != "cuda":  # which alone gives float32 for a product of bfloat16
            return repeated.float() @ self.parts.float()
        return torch.mm(repeated, self.parts, out_dtype=torch.float32)

    @cached_property
    def largest_input(self) -> float:
        return self.largest_norm(self.bias_norm)


def can_split(encoder: Encoder, model_dtype: torch.dtype) -> bool:
    """Whether the rows that an encoder multiplies are bfloat16 as they are, and its weights not."""
    exact = encoder.normalization == "none" and encoder.W_enc.dtype == torch.float32
    return exact and model_dtype == torch.bfloat16


def bfloat16_parts(values: Tensor, most: int = _MOST_PARTS) -> list[Tensor]:
    """bfloat16 tensors that add up to `values`, the largest first, as many as it takes."""
    found: list[Tensor] = []
    rest = values.float()
    while len(found) < most and (not found or bool(rest.any())):
        found.append(rest.bfloat16())
        rest = rest - found[-1].float()
    return found


def folded_bias(encoder: Encoder) -> Tensor:
    """b_enc - b_pre W_enc, float32 [d_sae]."""
    weights = encoder.W_enc
    bias = weights.new_zeros(weights.shape[1]) if encoder.b_enc is None else encoder.b_enc.clone()
    if encoder.b_pre is None:
        return bias
    before = encoder.b_pre.double()
    for start in range(0, weights.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        bias[block] = (bias[block].double() - before @ weights[:, block].double()).float()
    return bias
