"""Every activation rule: its sparse view is exactly the non-zeros of its dense one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ingest.sae.activations import Activation, Gated, GroupMax, JumpReLU, ReLU, TopK

ROWS, F = 7, 12
torch.set_num_threads(1)


def rules(generator: torch.Generator) -> dict[str, Activation]:
    def vector() -> Tensor:
        return torch.randn(F, generator=generator)

    return {
        "relu": ReLU(),
        "jumprelu": JumpReLU(vector()),
        "jumprelu scalar": JumpReLU(vector()[0]),
        "jumprelu unclamped": JumpReLU(vector(), clamp=False),
        "jumprelu unclamped scalar": JumpReLU(-vector()[0].abs(), clamp=False),
        "topk": TopK(3),
        "topk signed": TopK(3, relu=False),
        "topk by magnitude": TopK(3, relu=False, by_magnitude=True),
        "topk weighted": TopK(3, weights=vector().abs() * 5),
        "topk of all": TopK(F, relu=False),
        "groupmax": GroupMax(4),
        "gated": Gated(vector(), vector(), vector().exp()),
    }


@pytest.mark.parametrize("name", list(rules(torch.Generator())))
@given(
    seed=st.integers(0, 2**32 - 1),
    zeros=st.booleans(),
    shift=st.sampled_from([-5.0, 0.0, 5.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_sparse_is_the_non_zeros_of_dense(
    name: str, seed: int, zeros: bool, shift: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rule = rules(generator)[name]
    z = torch.randn(ROWS, F, generator=generator) + shift
    if zeros:
        z[torch.rand(ROWS, F, generator=generator) < 0.3] = 0
    z = z.to(dtype)
    dense, codes = rule.dense(z), rule.sparse(z)
    rows, features = torch.nonzero(dense, as_tuple=True)
    assert torch.equal(codes.rows, rows)
    assert torch.equal(codes.features, features)
    assert torch.equal(codes.values, dense[rows, features].float())
    kept = dense != 0
    if name != "gated":
        assert torch.equal(dense[kept], z[kept])
