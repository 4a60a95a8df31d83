"""Which contexts of a corpus to look at: a few from everywhere, the same ones every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LEVELS = 32

Words = npt.NDArray[np.uint64]


class Spread:
    """Contexts from all over a corpus, chosen while it is read, in little memory.

    Chosen are the contexts with the smallest `keys`, up to the one that reaches `tokens` tokens, at
    least one.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._seen = 0
        self._lengths = np.empty(0, np.int64)
        self.rows = np.empty(0, np.int64)
        """The chosen ones so far, int64, ascending. The next contexts may displace some."""

    def add(self, lengths: npt.NDArray[np.integer[Any]]) -> None:
        """Tokens of the next contexts [n]."""
        rows = np.concatenate([self.rows, self._seen + np.arange(len(lengths))])
        every = np.concatenate([self._lengths, lengths.astype(np.int64)])
        order = np.argsort(keys(rows), kind="stable")
        enough = np.searchsorted(np.cumsum(every[order]), self._tokens) + 1
        chosen = np.sort(order[:enough])
        self.rows, self._lengths = rows[chosen], every[chosen]
        self._seen += len(lengths)


def keys(rows: npt.NDArray[np.int64]) -> Words:
    """Sorting keys [n] of contexts, of which the smallest are spread evenly and at random.

    Of 2**k contexts from a multiple of 2**k on, one has the smallest key, any of them with the same
    probability: bits are flipped at random, those of a context depending on the bits above (Owen,
    "Randomly permuted (t, m, s)-nets", 1995). So every stretch has its share, and no period in the
    order of the contexts can meet one of the sample's.
    """
    key = np.zeros(len(rows), np.uint64)
    bits = rows.astype(np.uint64)
    for level in range(_LEVELS):
        above = bits >> np.uint64(1)
        flips = _mixed(above * np.uint64(_LEVELS) + np.uint64(level))
        key = key << np.uint64(1) | (bits ^ flips) & np.uint64(1)
        bits = above
    return key


def _mixed(x: Words) -> Words:
    """splitmix64's finalizer (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
