"""An encoder that multiplies in bfloat16 first, and again in float32 what may be active.

A bfloat16 product tells each pre-activation within a bound, and those that cannot pass their
threshold are not looked at again: of thousands of features some dozens are left. Their float32 sums
have the terms of the whole product in another order, so that what is active is the same, up to
rounding at the threshold itself, and a stored value may differ in its last bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ingest.sae.activations import JumpReLU, ReLU
from ingest.sae.codes import SparseCodes, joined
from ingest.sae.encoder import Encoder
from ingest.sae.split import can_split, folded_bias

_ROUNDED = 2.0**-8
"""The most that rounding to bfloat16 moves a number, as a share of what it gives."""

_FLOAT32 = 2.0**-24
"""The same of float32, in each addition."""

_ROOM = 64
"""Activations of a token that room is made for at first."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ScreenedEncoder(Encoder):
    """z = (x - b_pre) W_enc + b_enc for bfloat16 x on a CPU, where it may exceed the threshold."""

    @classmethod
    def of(cls, encoder: Encoder) -> ScreenedEncoder:
        """The same encoder, for which `can_screen` holds."""
        return cls(
            encoder.W_enc,
            encoder.activation,
            encoder.b_enc,
            encoder.b_pre,
            encoder.normalization,
        )

    def row_dtype(self, given: torch.dtype) -> torch.dtype:
        return given if given == torch.bfloat16 else super().row_dtype(given)

    def centered(self, x: Tensor) -> Tensor:
        return super().centered(x.to(self.W_enc.dtype))

    def active(self, x: Tensor, centered: Tensor) -> SparseCodes:
        if x.dtype != torch.bfloat16:
            return super().active(x, centered)
        bits = (x @ self._rounded).view(torch.uint16).numpy()
        before = 0.0 if self.b_pre is None else float(self.b_pre.norm())
        norms = (x.float().norm(dim=1) + before).numpy()
        rows = centered.contiguous().numpy()
        threads = torch.get_num_threads()
        shares = [np.array_split(each, threads) for each in (bits, norms, rows)]
        look = partial(_second_look, self._bounds)
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(look, *shares))
        return joined(found, [len(share) for share in shares[-1]])

    @cached_property
    def _rounded(self) -> Tensor:
        return self.W_enc.bfloat16()

    @cached_property
    def _bounds(self) -> tuple[Float32, ...]:
        """What `_active` compares with: limits, slack, weights by feature, biases, thresholds.

        With r the rounded product x W_enc, a pre-activation is at most r + 2^-8 |r| + the bias +
        slack (|x| + |b_pre|): by Cauchy and Schwarz, of the weights' rounding and of the additions
        in float32, of both looks. A limit is the threshold less the bias.
        """
        weights, d_in = self.W_enc, self.W_enc.shape[0]
        d_sae = weights.shape[1]
        added = 8 * (d_in + 8) * _FLOAT32 * weights.norm(dim=0)
        slack = (weights - self._rounded.float()).norm(dim=0) + added
        floor: Tensor = torch.zeros(d_sae)
        if isinstance(self.activation, JumpReLU):
            floor = self.activation.threshold.float().clamp_min(0).expand(d_sae)
        bias = folded_bias(self)
        limit = floor - bias - 8 * _FLOAT32 * (bias.abs() + floor)
        own = torch.zeros(d_sae) if self.b_enc is None else self.b_enc
        each = (limit, slack, weights.T, own, floor)
        return tuple(tensor.float().contiguous().numpy() for tensor in each)


def can_screen(encoder: Encoder, model_dtype: torch.dtype) -> bool:
    """Whether its rows are bfloat16 as they are, and each pre-activation has its own threshold."""
    rule = encoder.activation
    own = isinstance(rule, ReLU) or (isinstance(rule, JumpReLU) and rule.clamp)
    return own and can_split(encoder, model_dtype)


def _second_look(
    bounds: tuple[Float32, ...], bits: npt.NDArray[np.uint16], norms: Float32, rows: Float32
) -> SparseCodes:
    n, d_sae = bits.shape
    ends = np.zeros(n + 1, np.int64)
    features = np.empty(d_sae + n * _ROOM, np.int32)
    values = np.empty(len(features), np.float32)
    limit, slack, weights, bias, floor = bounds
    done = 0
    while True:
        done = _active(
            done, bits, norms, rows, limit, slack, weights, bias, floor, ends, features, values
        )
        if done == n:
            break
        features, values = (np.concatenate([a, np.empty_like(a)]) for a in (features, values))
    found = int(ends[-1])
    return SparseCodes(
        torch.from_numpy(np.repeat(np.arange(n), np.diff(ends))),
        torch.from_numpy(features[:found].astype(np.int64)),
        torch.from_numpy(values[:found].copy()),
    )


@nb.njit(cache=True, nogil=True, fastmath=True)
def _dot(one: Any, other: Any) -> Any:
    total = np.float32(0)
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@nb.njit(cache=True, nogil=True)
def _active(
    first: int,
    bits: Any,
    norms: Any,
    rows: Any,
    limit: Any,
    slack: Any,
    weights: Any,
    bias: Any,
    floor: Any,
    ends: Any,
    features: Any,
    values: Any,
) -> Any:
    """Append what is active in rows from `first` on, as long as there is room for a whole row.

    bits: uint16 [n, d_sae], of the bfloat16 product. Returns the first row that is not done.
    """
    n, d_sae = bits.shape
    wide = np.empty(d_sae, np.uint32)
    near = np.empty(d_sae, np.int32)
    product = wide.view(np.float32)
    found = ends[first]
    for i in range(first, n):
        if found + d_sae > len(features):
            return i
        for j in range(d_sae):
            wide[j] = np.uint32(bits[i, j]) << np.uint32(16)
        count = 0
        for j in range(d_sae):
            r = product[j]
            if r + np.float32(_ROUNDED) * abs(r) + norms[i] * slack[j] > limit[j]:
                near[count] = j
                count += 1
        for j in near[:count]:
            z = _dot(rows[i], weights[j]) + bias[j]
            if z > floor[j]:
                features[found] = j
                values[found] = z
                found += 1
        ends[i + 1] = found
    return n
