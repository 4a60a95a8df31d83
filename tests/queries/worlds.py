"""Small generated worlds with difficult cases: ties, silence, repeats, edges."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import strategies as st

from tests.make_store import MadeSae, World

LEVELS = np.array([0.5, 1.0, 1.0, 2.0, 3.25, 0.1, 70_000.0, 1e-9], np.float32)
"""Few values, so that ties are common. One beyond float16, one below it."""

VOCABULARY = ["<bos>", " a", "b", "B ", "\n", "日", " a", "", "'q'", '"x"', "long word"]


POOL = 16
"""Worlds of each kind. A store takes a second to make, so tests draw from few that are shared."""


def worlds(max_saes: int = 3) -> st.SearchStrategy[World]:
    """One of `POOL` worlds, as `made_world` makes them. Not to be changed: tests share them."""
    return st.integers(0, POOL - 1).map(lambda seed: made_world(seed, max_saes))


@cache
def made_world(seed: int, max_saes: int) -> World:
    """Documents of 0 to 3 contexts of at most 8 tokens, 1 to `max_saes` SAEs of 1 to 60 features.

    Some features never fire. Directions repeat, so cosines tie.
    """
    rng = np.random.default_rng((seed, max_saes))
    bos = (0, None)[seed % 2]
    size = int(rng.choice([2, 5, 8]))
    documents: list[list[list[int]]] = []
    first = int(bos is not None)
    for n_tokens in rng.integers(0, 3 * (size - first) + 1, rng.integers(1, 13)).tolist():
        own = rng.integers(1, len(VOCABULARY), n_tokens).tolist()
        step = size - first
        pieces = [own[i : i + step] for i in range(0, n_tokens, step)]
        documents.append([([bos] if bos is not None else []) + p for p in pieces])
    # A corpus without any token is refused, and a column of only nulls has no type.
    documents.append([([bos] if bos is not None else []) + [1]])
    n_contexts = sum(map(len, documents))
    contexts = [c for d in documents for c in d]
    names = rng.permutation(["b-sae", "a/sae", "it's"]).tolist()
    shared = rng.integers(-2, 3, (40, 4)).astype(np.float32)
    saes = []
    for name in names[: seed // 2 % max_saes + 1]:
        d_sae = int(rng.choice([1, 3, 12, 60]))
        density = float(rng.choice([0.0, 0.05, 0.5]))
        dense = []
        silent = rng.random(d_sae) < 0.2
        for context in contexts:
            active = rng.random((len(context), d_sae)) < density
            active[:, silent] = False
            values = rng.choice(LEVELS, active.shape)
            dense.append(np.where(active, values, 0).astype(np.float32))
        hook = f"blocks.{rng.integers(2)}.hook_resid_post"
        decoder, encoder = (shared[rng.integers(0, 40, d_sae)] for _ in range(2))
        saes.append(MadeSae(name, dense, decoder, encoder, hook))
    known = ["art", "it's", None]
    topics = [*(known[i] for i in rng.integers(0, 3, len(documents) - 1)), "art"]
    return World(
        documents=documents,
        metadata={
            "topic": topics,
            "rank": rng.integers(0, 5, len(documents)).tolist(),
        },
        vocabulary=VOCABULARY,
        saes=saes,
        bos=bos,
        context_size=size,
        partitions=int(rng.integers(1, min(3, max(1, n_contexts)) + 1)),
    )
