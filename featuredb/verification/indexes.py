"""Approximate indexes over directions: whether they hold every row once, in the right list."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featuredb.store.files.location import load_array
from featuredb.store.snapshot import VectorIndex
from featuredb.store.vectors.directions import scanned_rows
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope

_SAMPLE = 256
"""Number of directions with a checked list, spread over all."""

_TIE = 1e-3
"""Products this near each other are one to float16, which the index was made from."""


def check_index(scope: Scope, index: VectorIndex) -> Iterator[Problem]:
    """The lists have every direction once, each list in order, a sample in its nearest list."""
    root, path = scope.layout.root, index.lists.path
    centroids, lists = (load_array(root, f.path) for f in (index.centroids, index.lists))
    known = {v.sae: v for v in scope.snapshot.vectors}
    halves = [scanned_rows(root, known[name], index.kind) for name in index.saes]
    firsts = np.cumsum([0] + [len(half) for half in halves])
    begins, rows = lists[: len(centroids) + 1], lists[len(centroids) + 1 :]
    lengths = np.diff(begins)
    if len(rows) != firsts[-1] or begins[0] != 0 or begins[-1] != len(rows) or (lengths < 0).any():
        yield Problem(path, f"does not have {firsts[-1]:,} directions in its lists", remedy(path))
        return
    falls = np.flatnonzero(np.diff(rows) <= 0) + 1
    seen = np.zeros(len(rows), bool)
    inside = (rows >= 0) & (rows < len(rows))
    seen[rows[inside]] = True
    if not seen.all() or not np.isin(falls, begins).all():
        yield Problem(path, "does not have every direction once, in order", remedy(path))
        return
    for at in np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64):
        part = int(np.searchsorted(firsts, rows[at], side="right")) - 1
        products = centroids @ halves[part][rows[at] - firsts[part]].astype(np.float32)
        assigned = int(np.searchsorted(begins, at, side="right")) - 1
        if products[assigned] < products.max() - _TIE:
            yield Problem(path, f"has direction {rows[at]} in a list it is far from", remedy(path))
            return
