"""Random draws that depend on the seed alone, as `queries.catalog.draws` makes them in SQL."""

from __future__ import annotations

from hashlib import md5

import numpy as np
import numpy.typing as npt

from queries.catalog.draws import PRIME, STEP

Int64 = npt.NDArray[np.int64]


def keys(context_ids: Int64, seed: int, feature: str) -> Int64:
    """A key per context: drawing the least keys draws at random. No two contexts have one key.

    feature: as `sae/1234`. The formula is that of `queries.catalog.draws.keyed`, whose
    ``md5_number_lower`` is the second half of the digest.
    """
    digest = md5(f"{seed}/{feature}".encode(), usedforsecurity=False).digest()
    start = int.from_bytes(digest[8:], "little") % PRIME
    x = (context_ids * STEP + start) % PRIME
    square = x * x % PRIME
    result: Int64 = (square * square % PRIME) * x % PRIME
    return result


def turns(group: npt.NDArray[np.integer], key: Int64) -> Int64:
    """The place of each context in its group by key, from 0. Both [n]."""
    order = np.lexsort((key, group))
    ordered = group[order]
    first = np.searchsorted(ordered, ordered)
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - first
    return turn
