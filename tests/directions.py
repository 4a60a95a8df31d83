"""Synthetic directions, and stores with nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featuredb.store.snapshot import LoadCheck, Sae
from featuredb.store.vectors.directions import Directions
from tests.make_store import MadeSae, World


def clustered(n: int, d: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Rows float32 [n, d] of different lengths, about fifty to a cluster."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(1, n // 50), d))
    rows = centers[rng.integers(0, len(centers), n)] + 0.5 * rng.standard_normal((n, d))
    scaled: npt.NDArray[np.float32] = (rows * rng.uniform(0.2, 5, (n, 1))).astype(np.float32)
    return scaled


def made_directions(n: int, d: int, seed: int = 0) -> Directions:
    """Clustered decoder and encoder directions."""
    return Directions(clustered(n, d, seed), clustered(n, d, seed + 100))


def with_ties(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same with a zero row, and one direction in more rows than a search takes as
    candidates."""
    tied = rows.copy()
    tied[3] = 0
    tied[10:210] = tied[10] * np.linspace(0.5, 2, 200, dtype=np.float32)[:, None]
    return tied


def cosines_of_all(
    rows: npt.NDArray[np.float32], asked: Sequence[int] | None = None
) -> npt.NDArray[np.float32]:
    """Scores [q, n] of the given rows, or of all, with every row, by the definition."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    lengths = np.where(norms == 0, 1, norms)
    own = slice(None) if asked is None else list(asked)
    return np.round(wide[own] @ wide.T / lengths / lengths[own][:, None], 7).astype(np.float32)


def sae_of(name: str, d_sae: int, d: int) -> Sae:
    """An SAE of that shape."""
    check = LoadCheck(0, 0.0, 1.0, 0.0, 1.0, None)
    hook = "blocks.0.hook_resid_post"
    return Sae(name, "made", "made", "relu", "0", hook, None, d, d, d_sae, "float32", check)


def a_world(saes: Mapping[str, Directions], hooks: Mapping[str, str] | None = None) -> World:
    """One context of two tokens, on which each SAE's first feature fires."""
    made = []
    for name, directions in saes.items():
        dense = np.zeros((2, len(directions.decoder)), np.float32)
        dense[1, 0] = 1
        hook = (hooks or {}).get(name, "blocks.0.hook_resid_post")
        made.append(MadeSae(name, [dense], directions.decoder, directions.encoder, hook))
    return World(
        documents=[[[0, 1]]],
        metadata={"topic": ["art"]},
        vocabulary=["<bos>", " a"],
        saes=made,
        partitions=1,
    )
