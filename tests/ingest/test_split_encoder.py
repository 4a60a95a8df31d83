"""Encoders whose weights are sums of bfloat16 parts, against float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from featuredb.errors import IngestError, SaeError
from ingest.inputs import load_model_with_saes
from ingest.options import IngestOptions
from ingest.sae import load_sae
from ingest.sae.activations import JumpReLU, ReLU
from ingest.sae.encoder import Encoder
from ingest.sae.split import SplitEncoder, can_split
from tests.tiny import WIDTH, tiny_model, tiny_sae

D_SAE = 192


def made(seed: int = 0, *, d_in: int = 96, centered: bool = True) -> tuple[Encoder, Tensor]:
    """An encoder and rows of a bfloat16 model, a few of whose dimensions are large."""
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(d_in, D_SAE, generator=draw) * torch.logspace(-6, 1, d_in)[:, None]
    rows = torch.randn(64, d_in, generator=draw)
    rows[:, :3] *= 200
    b_pre = torch.randn(d_in, generator=draw) if centered else None
    return Encoder(weights, ReLU(), torch.randn(D_SAE, generator=draw), b_pre), rows.bfloat16()


def exact(encoder: Encoder, rows: Tensor) -> Tensor:
    x = rows.double() if encoder.b_pre is None else rows.double() - encoder.b_pre.double()
    z = x @ encoder.W_enc.double()
    return z if encoder.b_enc is None else z + encoder.b_enc.double()


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("d_in", [96, 101])
def test_the_product_is_that_of_the_float32_weights(d_in: int, centered: bool) -> None:
    encoder, rows = made(d_in=d_in, centered=centered)
    split = SplitEncoder.of(encoder)
    z = split.pre_activations(rows).double()
    # No sum of float32 numbers can be expected to be closer than the size of what is added up.
    size = rows.double().abs() @ encoder.W_enc.double().abs() + 10
    assert float(((z - exact(encoder, rows)).abs() / size).max()) < 1e-6
    one_part = rows.double() @ encoder.W_enc.bfloat16().double()
    assert float(((one_part - exact(encoder, rows)).abs() / size).max()) > 1e-4


def test_weights_of_16_bits_take_two_parts() -> None:
    encoder, _ = made()
    assert SplitEncoder.of(encoder).parts is not None
    rows_of = {
        name: len(SplitEncoder.of(replace(encoder, W_enc=weights)).parts)  # type: ignore[arg-type]
        for name, weights in {
            "float32": encoder.W_enc,
            "float16": (encoder.W_enc * 100).half().float(),
            "bfloat16": encoder.W_enc.bfloat16().float(),
        }.items()
    }
    d_in = encoder.W_enc.shape[0]
    assert rows_of == {"float32": 3 * d_in + 8, "float16": 2 * d_in + 8, "bfloat16": d_in + 8}


def test_rows_of_another_dtype_are_encoded_as_ever() -> None:
    encoder, rows = made()
    split = SplitEncoder.of(encoder)
    wide = rows.float() + 1e-4
    assert torch.equal(split.pre_activations(wide), encoder.pre_activations(wide))


def test_what_is_active_is_the_same(tmp_path: Path) -> None:
    sae = load_sae(str(tiny_sae(tmp_path / "sae", d_sae=D_SAE)))
    sae = replace(sae, encoder=replace(sae.encoder, activation=JumpReLU(torch.tensor(0.1))))
    rows = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    split = sae.encoded_in("bfloat16x3")
    wanted, found = sae.encode_sparse(rows), split.encode_sparse(rows)
    assert torch.equal(wanted.rows, found.rows)
    assert torch.equal(wanted.features, found.features)
    torch.testing.assert_close(wanted.values, found.values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sae.encode(rows), sae.encoded_in("bfloat16x3").encode(rows), rtol=1e-5, atol=1e-6
    )


def test_sums_that_overflow_are_seen(tmp_path: Path) -> None:
    encoder, _ = made(d_in=8, centered=False)
    weights = torch.zeros(8, D_SAE)
    weights[:2, 1] = torch.tensor([1e18, -1e18])
    sae = load_sae(str(tiny_sae(tmp_path / "sae", d_sae=D_SAE)))
    wide = replace(sae, encoder=replace(encoder, W_enc=weights)).encoded_in("bfloat16x3")
    for size, large in [(1e21, True), (1.0, False)]:
        assert bool(wide.launch(torch.full((4, 8), size).bfloat16(), None, 9.0)[1]) == large


def test_it_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    encoder, _ = made()
    assert can_split(encoder, torch.bfloat16)
    assert not can_split(encoder, torch.float32)
    assert not can_split(replace(encoder, normalization="layer_norm"), torch.bfloat16)
    options = IngestOptions(
        corpus=["a text"],
        model=str(tiny_model(tmp_path / "model")),
        saes=[str(tiny_sae(tmp_path / "sae"))],
        device="cpu",
        encode_dtype="bfloat16x3",
    )
    with pytest.raises(SaeError, match="is for an NVIDIA GPU, and the model is on cpu"):
        load_model_with_saes(options)
    with pytest.raises(
        IngestError, match="encode_dtype must be one of float32, bfloat16x3, screened"
    ):
        replace(options, encode_dtype="float16")  # type: ignore[arg-type]
