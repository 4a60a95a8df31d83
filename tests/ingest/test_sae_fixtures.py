"""Fourteen SAEs saved by their own libraries: our codes and reconstructions are theirs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ingest.sae import LoadedSae, load_sae
from tests.ingest.sae_files import check_stored, record

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saes"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
ENCODE, DECODE = 1e-5, 1e-4

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / str(request.param)


def test_there_are_fourteen() -> None:
    assert len(NAMES) == 14


def test_codes_and_reconstructions_match(folder: Path) -> None:
    sae, golden = load_sae(folder), load_file(folder / "golden.safetensors")
    acts = sae.encode(golden["x"])
    assert torch.equal(acts != 0, golden["acts"] != 0)
    error = float((acts - golden["acts"]).abs().max())
    assert error <= ENCODE
    record(sae, error)
    recon = sae.decode(golden["acts"], golden["x"])
    assert float((recon - golden["recon"]).abs().max()) <= DECODE


def test_what_a_database_keeps_gives_the_same_bits(folder: Path) -> None:
    check_stored(load_sae(folder), load_file(folder / "golden.safetensors")["x"])


def test_mean_l0_is_the_library_s(folder: Path) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    x = load_file(folder / "golden.safetensors")["x"]
    assert float((load_sae(folder).encode(x) != 0).sum(1).float().mean()) == golden["mean_l0"]


def test_sparse_is_exactly_the_non_zeros(folder: Path) -> None:
    sae, x = load_sae(folder), load_file(folder / "golden.safetensors")["x"]
    dense, codes = sae.encode(x), sae.encode_sparse(x)
    rows, features = torch.nonzero(dense, as_tuple=True)  # by row, then by feature
    assert torch.equal(codes.rows, rows)
    assert torch.equal(codes.features, features)
    assert torch.equal(codes.values, dense[rows, features])
    assert (codes.rows.dtype, codes.values.dtype) == (torch.int64, torch.float32)


def test_leading_dimensions_and_batches_change_nothing(folder: Path) -> None:
    sae, x = load_sae(folder), load_file(folder / "golden.safetensors")["x"]
    whole = sae.encode(x)
    folded = sae.encode(x.reshape(4, 16, -1))
    assert folded.shape == (4, 16, sae.d_sae)
    assert torch.equal(folded.reshape(64, -1), whole)
    one = sae.encode(x[5])
    assert torch.equal(one != 0, whole[5] != 0)
    recon = sae.decode(folded, x.reshape(4, 16, -1))
    assert recon.shape == (4, 16, sae.d_out)
    assert torch.equal(sae.encode_sparse(x.reshape(4, 16, -1)).rows, sae.encode_sparse(x).rows)


def test_sparse_takes_inputs_that_ask_for_gradients(folder: Path) -> None:
    sae, x = load_sae(folder), load_file(folder / "golden.safetensors")["x"]
    codes = sae.encode_sparse(x.clone().requires_grad_())
    assert torch.equal(codes.values, sae.encode_sparse(x).values)


def test_empty_batch(folder: Path) -> None:
    sae = load_sae(folder)
    x = torch.zeros(0, sae.d_in)
    assert sae.encode(x).shape == (0, sae.d_sae)
    assert [part.numel() for part in sae.encode_sparse(x)] == [0, 0, 0]


def test_decode_is_linear_in_the_stated_directions(folder: Path) -> None:
    """A feature's contribution is its activation times its row of W_dec, in raw units."""
    sae, golden = load_sae(folder), load_file(folder / "golden.safetensors")
    x, acts = golden["x"][:1], golden["acts"][:1].clone()
    feature = int(acts[0].argmax())
    without = acts.clone()
    without[0, feature] = 0
    step = sae.decode(acts, x) - sae.decode(without, x)
    scale = x.std() if sae.needs_input_to_decode else 1.0
    expected = acts[0, feature] * sae.W_dec[feature] * scale
    torch.testing.assert_close(step[0], expected, atol=1e-4, rtol=1e-4)


def test_facts(folder: Path) -> None:
    sae = load_sae(folder)
    golden = json.loads((folder / "golden.json").read_text())
    assert sae.format == golden["format"]
    assert sae.architecture == golden["architecture"]
    assert (sae.d_in, sae.d_sae, sae.d_out) == (golden["d_in"], golden["d_sae"], golden["d_in"])
    assert (sae.W_enc.shape, sae.W_dec.shape) == ((48, 256), (256, 48))
    assert sae.name == folder.name
    assert sae.source == str(folder)
    (weights,) = sae.files
    assert sae.hash == hashlib.sha256(weights.read_bytes()).hexdigest()
    if sae.format in ("saelens", "dictionary_learning"):
        assert sae.hook == "blocks.9.hook_resid_post"
        assert sae.context_size == 128
    if sae.format == "saelens":
        assert (sae.model_name, sae.prepend_bos) == ("smollm2-135m", True)
    if "topk" in folder.name:
        assert sae.stated_l0 == 8.0


def test_weight_file_instead_of_folder(folder: Path) -> None:
    by_folder = load_sae(folder)
    by_file: LoadedSae = load_sae(str(by_folder.files[0]))
    x = load_file(folder / "golden.safetensors")["x"]
    assert torch.equal(by_file.encode(x), by_folder.encode(x))
    assert (by_file.name, by_file.hash) == (by_folder.name, by_folder.hash)


def test_dtype(folder: Path) -> None:
    sae = load_sae(folder, dtype=torch.bfloat16)
    x = load_file(folder / "golden.safetensors")["x"]
    assert sae.dtype == torch.bfloat16
    assert sae.encode(x).dtype == sae.decode(sae.encode(x), x).dtype == torch.float32
    back = sae.to(dtype=torch.float32)
    assert (back.dtype, sae.dtype) == (torch.float32, torch.bfloat16)
    codes = sae.encode_sparse(x)
    assert torch.equal(codes.values, sae.encode(x)[codes.rows, codes.features])
