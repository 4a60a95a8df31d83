"""Files of SAE releases, small and random, and the comparison with independently computed
numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from featuredb.store.vectors.directions import Directions
from ingest.sae import LoadedSae
from ingest.sae.stored import packed, unpacked

Array = NDArray[np.float64]

ERRORS: dict[str, float] = {}
"""The largest error of encode() so far, by format and rule. Printed at the end of a run."""


def arrays(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random tensors by name: decoder norms far from 1, and from one another."""
    r = np.random.default_rng(7)
    made = {name: r.normal(size=shape) * 0.5 for name, shape in shapes.items()}
    for name, value in made.items():
        if name in ("W_dec", "w_dec", "W_D") and value.ndim == 2:
            value *= np.geomspace(0.1, 8, len(value))[:, None]
        if name == "decoder.weight" and value.ndim == 2:
            value *= np.geomspace(0.1, 8, value.shape[1])
    return made


def tensors(weights: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.asarray(value, dtype=np.float32)).contiguous()
        for name, value in weights.items()
    }


def inputs(d: int, n: int = 9) -> Array:
    """Rows with a mean that is not zero."""
    return np.random.default_rng(3).normal(size=(n, d)) * 2 + 0.7


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def top(z: Array, k: int, by: Array | None = None) -> Array:
    """The k largest of each row of `by` (z itself), with the values of z."""
    out = np.zeros_like(z)
    for row, rank in enumerate(z if by is None else by):
        best = np.argsort(-rank)[:k]
        out[row, best] = z[row, best]
    return out


def check(sae: LoadedSae, x: Array, acts: Array, y: Array, atol: float = 1e-4) -> None:
    """Dense, sparse and decoded agree with `acts` and `y`."""
    given = torch.from_numpy(x).float()
    got = sae.encode(given)
    assert np.array_equal(got.numpy() != 0, acts != 0)
    assert 0 < np.count_nonzero(acts) < acts.size
    np.testing.assert_allclose(got.numpy(), acts, atol=atol, rtol=1e-5)
    codes = sae.encode_sparse(given)
    dense = torch.zeros_like(got)
    dense[codes.rows, codes.features] = codes.values
    assert torch.equal(dense, got)
    np.testing.assert_allclose(sae.decode(got, given).numpy(), y, atol=10 * atol, rtol=1e-4)
    record(sae, float(np.abs(got.numpy() - acts).max()))
    check_stored(sae, given)


def check_stored(sae: LoadedSae, x: torch.Tensor) -> None:
    """What a database keeps of an SAE gives the same bits, for any number of rows."""
    directions = Directions(sae.W_dec.numpy().copy(), sae.W_enc.T.numpy().copy())
    kept = replace(unpacked(packed(sae), directions), hook=sae.hook, name=sae.name)
    assert packed(kept) == packed(sae)
    assert torch.equal(kept.W_dec, sae.W_dec)
    for rows in (x, x[:3], x[:1], x[0]):
        acts = sae.encode(rows)
        assert torch.equal(kept.encode(rows), acts)
        for one, other in zip(kept.encode_sparse(rows), sae.encode_sparse(rows), strict=True):
            assert torch.equal(one, other)
        if sae.cross_layer is None:
            assert torch.equal(kept.decode(acts, rows), sae.decode(acts, rows))


def record(sae: LoadedSae, error: float) -> None:
    """Keep `error` for the table of errors, if it is the largest of its format."""
    name = f"{sae.format} {sae.architecture}"
    ERRORS[name] = max(error, ERRORS.get(name, 0.0))


def safetensors(
    file: Path, weights: dict[str, Array], dtype: torch.dtype = torch.float32, **configs: Any
) -> Path:
    """Write `weights`, and beside them configurations by name, as `cfg={…}` for cfg.json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(dtype) for name, value in tensors(weights).items()}, file)
    for name, config in configs.items():
        (file.parent / f"{name}.json").write_text(json.dumps(config))
    return file


def torch_file(file: Path, content: Any, **configs: Any) -> Path:
    """As `safetensors`, with torch.save. Arrays become tensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    for name, config in configs.items():
        (file.parent / f"{name}.json").write_text(json.dumps(config))
    return file


def rounded(weights: dict[str, Array], dtype: torch.dtype) -> dict[str, Array]:
    """`weights` after storage in `dtype`."""
    return {name: value.to(dtype).double().numpy() for name, value in tensors(weights).items()}
