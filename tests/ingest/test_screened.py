"""Encoders that multiply in bfloat16 first, against the whole product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import featuredb
from featuredb.errors import SaeError
from ingest.inputs import load_model_with_saes
from ingest.options import IngestOptions
from ingest.sae import LoadedSae, load_sae
from ingest.sae.activations import Activation, JumpReLU, ReLU, TopK
from ingest.sae.encoder import Encoder
from ingest.sae.screened import ScreenedEncoder, can_screen
from tests.ingest.test_split_encoder import exact
from tests.tiny import WIDTH, tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> LoadedSae:
    return load_sae(str(tiny_sae(tmp_path_factory.mktemp("sae") / "sae", d_sae=192)))


def rows_of(seed: int, n: int, d_in: int, outlier: float) -> Tensor:
    """Of a bfloat16 model: three dimensions are larger than the others, and one row than all."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d_in, generator=draw)
    rows[:, :3] *= outlier
    rows[-1:] *= 100
    return rows.bfloat16()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 70),
    d_in=st.integers(1, 70),
    d_sae=st.integers(1, 300),
    outlier=st.sampled_from([1.0, 30.0, 1_000.0]),
    centered=st.booleans(),
    biased=st.booleans(),
    threshold=st.sampled_from([None, 0.0, 0.5, 3.0, "each"]),
)
def test_what_may_be_active_is_found(
    sae: LoadedSae,
    seed: int,
    n: int,
    d_in: int,
    d_sae: int,
    outlier: float,
    centered: bool,
    biased: bool,
    threshold: float | str | None,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    rule: Activation = ReLU()
    if threshold is not None:
        each = torch.rand(d_sae, generator=draw) * 4 - 0.5
        rule = JumpReLU(each if threshold == "each" else torch.tensor(threshold))
    encoder = Encoder(
        torch.randn(d_in, d_sae, generator=draw),
        rule,
        torch.randn(d_sae, generator=draw) if biased else None,
        torch.randn(d_in, generator=draw) if centered else None,
    )
    x = rows_of(seed, n, d_in, outlier)
    assert can_screen(encoder, x.dtype)
    plain = replace(sae, encoder=encoder)
    found = replace(sae, encoder=ScreenedEncoder.of(encoder)).encode_sparse(x)
    dense = torch.zeros(n, d_sae)
    dense[found.rows, found.features] = found.values
    key = found.rows * d_sae + found.features
    assert torch.equal(key, key.sort().values)
    assert bool((found.values > 0).all())
    wanted = plain.encode(x)
    z = exact(encoder, x)
    size = x.double().abs() @ encoder.W_enc.double().abs() + 10
    both = (dense > 0) & (wanted > 0)
    assert _most((dense - wanted).abs() / size, both) < 1e-6
    # On one side alone only where float32 itself cannot tell.
    floor = rule.threshold.clamp_min(0).double() if isinstance(rule, JumpReLU) else 0.0
    assert _most((z - floor).abs() / size, (dense > 0) != (wanted > 0)) < 1e-6


def _most(values: Tensor, where: Tensor) -> float:
    chosen = values[where]
    return float(chosen.max()) if len(chosen) else 0.0


def test_another_dtype_is_encoded_as_ever(sae: LoadedSae) -> None:
    relu = replace(sae, encoder=replace(sae.encoder, activation=ReLU()))
    screened = relu.encoded_in("screened")
    for x in (torch.randn(50, WIDTH), torch.randn(50, WIDTH).bfloat16()):
        assert torch.equal(screened.encode(x), relu.encode(x))
    wide = torch.randn(50, WIDTH)
    assert all(map(torch.equal, screened.encode_sparse(wide), relu.encode_sparse(wide)))


def test_sums_that_may_overflow_are_not_screened(sae: LoadedSae) -> None:
    weights = torch.zeros(WIDTH, 192)
    weights[:2, 1] = torch.tensor([1e18, -1e18])
    plain = replace(sae, encoder=replace(sae.encoder, W_enc=weights, activation=ReLU()))
    large = torch.full((4, WIDTH), 1e21).bfloat16()
    outcomes: list[object] = []
    for each in (plain, plain.encoded_in("screened")):
        try:
            outcomes.append(each.encode_sparse(large).values.tolist())
        except SaeError as error:  # where the sum's order gives a NaN
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_an_ingest_stores_the_same(tmp_path: Path) -> None:
    model, folder = tiny_model(tmp_path / "model"), tmp_path / "sae"
    corpus = write_jsonl(tmp_path / "corpus.jsonl", tiny_documents())
    tiny_sae(folder)
    stored = []
    for encoding in ("float32", "screened"):
        path = tmp_path / f"{encoding}.fdb"
        featuredb.ingest(
            path,
            corpus=str(corpus),
            model=str(model),
            saes=[str(folder)],
            device="cpu",
            dtype="bfloat16",
            context_size=32,
            encode_dtype=encoding,
            check=False,
            progress=False,
        )
        with featuredb.open(path) as db:
            assert db.sql("SELECT encode_dtype FROM saes").fetchall() == [(encoding,)]
            columns = "context_id, token_index, feature_id, activation"
            stored.append(db.sql(f"SELECT {columns} FROM activations ORDER BY 1, 2, 3").fetchall())
    one, other = (np.array(rows) for rows in stored)
    assert len(one) > 1_000
    assert np.array_equal(one[:, :3], other[:, :3])
    np.testing.assert_allclose(one[:, 3], other[:, 3], rtol=2e-3, atol=1e-6)


def test_it_is_refused_where_it_cannot_be(tmp_path: Path, sae: LoadedSae) -> None:
    encoder = sae.encoder
    assert not can_screen(replace(encoder, activation=TopK(3)), torch.bfloat16)
    assert not can_screen(replace(encoder, activation=ReLU()), torch.float32)
    signed = JumpReLU(torch.tensor(-1.0), clamp=False)
    assert not can_screen(replace(encoder, activation=signed), torch.bfloat16)
    options = IngestOptions(
        corpus=["a text"],
        model=str(tiny_model(tmp_path / "model")),
        saes=[str(tiny_sae(tmp_path / "sae", architecture="topk", k=8))],
        device="cpu",
        dtype="bfloat16",
        encode_dtype="screened",
    )
    with pytest.raises(SaeError, match="its input, with ReLU or JumpReLU: leave"):
        load_model_with_saes(options)
