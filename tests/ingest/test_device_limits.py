"""What a device has too little of, memory or precision, changes no content and is never silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featuredb.errors import ModelError, SaeError
from ingest.derive import logits
from ingest.derive.logits import logit_lens
from ingest.extract.device import in_pieces
from ingest.load_check.sample import explain
from ingest.model import device
from ingest.model.device import choose_dtype, full_float32
from ingest.model.load import Unembedding
from ingest.sae import LoadedSae, codes, load_sae
from tests.tiny import WIDTH, tiny_sae


@pytest.fixture
def sae(tmp_path: Path) -> LoadedSae:
    return load_sae(str(tiny_sae(tmp_path / "sae", d_sae=256)))


def rows(n: int) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("n", [0, 1, 40, 1_000, 1_025])
def test_encoding_some_rows_at_a_time_gives_the_same_bits(
    sae: LoadedSae, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    whole = sae.encode_sparse(rows(n))
    monkeypatch.setattr(codes, "_AT_ONCE", 64 * sae.d_sae)
    assert len(codes.even_pieces(rows(n), sae.d_sae)) == max(1, -(-n // 64))
    for one, other in zip(whole, sae.encode_sparse(rows(n)), strict=True):
        assert torch.equal(one, other)


def test_sums_that_overflow_to_nan_are_refused(sae: LoadedSae) -> None:
    weights = torch.zeros(2, 3)
    weights[:, 1] = torch.tensor([2e38, -2e38])
    encoder = replace(sae.encoder, W_enc=weights, b_enc=torch.zeros(3))
    wide = replace(sae, encoder=encoder)
    assert len(wide.encode_sparse(torch.ones(4, 2)).rows) == 0, "large, but no NaN"
    with pytest.raises(SaeError, match="NaN pre-activations, as its sums overflow"):
        wide.encode_sparse(torch.full((4, 2), 1e10))


def test_an_ingest_keeps_no_decoder_on_the_device(sae: LoadedSae) -> None:
    light = sae.encoder_only()
    assert light.decoder.W_dec.device.type == "meta"
    assert light.d_out == sae.d_out
    for one, other in zip(light.encode_sparse(rows(9)), sae.encode_sparse(rows(9)), strict=True):
        assert torch.equal(one, other)


def limited(work: Any, most: int, argument: int) -> Any:
    """`work`, which runs out of memory for more than `most` rows of that argument."""

    def run(*args: Any, **options: Any) -> Any:
        if len(args[argument]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*args, **options)

    return run


def test_pieces_shrink_until_they_fit_and_cover_every_row_once() -> None:
    done: list[int] = []

    def work(piece: slice) -> None:
        if piece.stop - piece.start > 5:
            raise torch.OutOfMemoryError
        done.extend(range(piece.start, piece.stop))

    in_pieces(work, 23, 16, "a row")
    assert done == list(range(23))

    def fails(_: slice) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(ModelError, match=r"too little memory for a row$"):
        in_pieces(fails, 3, 16, "a row")


def test_the_load_check_takes_fewer_rows_where_memory_is_short(
    sae: LoadedSae, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows(300)
    whole = explain(sae, x, x)
    monkeypatch.setattr(LoadedSae, "encode", limited(LoadedSae.encode, 100, 1))
    parts = explain(sae, x, x)
    assert parts.counts.tolist() == whole.counts.tolist()
    assert torch.equal(parts.active, whole.active)
    assert torch.allclose(parts.squared, whole.squared)
    assert parts.squared.device.type == "cpu"


def test_the_logit_lens_takes_fewer_features_where_memory_is_short(
    sae: LoadedSae, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = Unembedding(torch.randn(64, WIDTH), None, center=False)
    texts, known = [str(i) for i in range(64)], np.ones(64, bool)
    whole = logit_lens(sae.W_dec, lens, texts, known)
    monkeypatch.setattr(logits, "strongest_tokens", limited(logits.strongest_tokens, 50, 0))
    assert logit_lens(sae.W_dec, lens, texts, known).equals(whole)


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.18 GiB of "
    "which 10.19 MiB is free. Including non-PyTorch memory, this process has 79.16 GiB memory in "
    "use. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=True."
)
"""What torch 2.11 says on an H100."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(OUT_OF_MEMORY),
            "SAE sae does not fit on cuda: CUDA out of memory. Tried to allocate 20.00 MiB. "
            "GPU 0 has a total capacity of 79.18 GiB of which 10.19 MiB is free",
        ),
        (RuntimeError("no such dtype\nhere"), "SAE sae cannot be put on cuda: no such dtype"),
    ],
)
def test_an_sae_that_cannot_be_put_on_a_device_is_named(
    sae: LoadedSae, error: RuntimeError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise error

    monkeypatch.setattr(Tensor, "to", full)
    with pytest.raises(SaeError) as caught:
        sae.to("cuda")
    assert str(caught.value) == said


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_float32_products_are_exact_whatever_a_notebook_allowed(before: str) -> None:
    given = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with full_float32():
            with full_float32():
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(given)


@pytest.mark.parametrize(
    ("native", "published", "chosen"),
    [
        (True, torch.float16, torch.bfloat16),
        (False, torch.float16, torch.float16),
        (False, torch.bfloat16, torch.float32),
        (False, None, torch.float32),
    ],
)
def test_bfloat16_only_where_a_gpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, published: Any, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(device, "_has_bfloat16", lambda _: native)
    assert choose_dtype("auto", torch.device("cuda"), published) == chosen
