"""Table of example contexts per feature: the strongest, and samples from each quintile.

Order and kinds are those of `featuredb.store.schemas.examples`. `ingest.derive.tally` chooses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from ingest.derive.statistics import lists
from ingest.derive.tally import Tallies


class ContextTokens(NamedTuple):
    """The tokens of contexts, one context after the other: lengths [contexts], the others [n]."""

    lengths: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int32]
    activation: npt.NDArray[np.floating]


Fetch = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], ContextTokens]
"""(first row, rows) of each context chosen, both [contexts], to its tokens."""


def examples_table(first_feature: int, tallies: Tallies, fetch: Fetch) -> pa.Table:
    """Rows of `schemas.examples`, in float32, of the features tallied, in order."""
    used = np.arange(tallies.examples.shape[1]) < tallies.n_examples[:, None]
    row = np.nonzero(used)[0]
    kind, rank, context, index, start, length = tallies.examples[used].T
    active = fetch(start, length)
    return pa.table(
        [
            pa.array((row + first_feature).astype(np.uint32)),
            pa.array(kind.astype(np.uint8)),
            pa.array(rank.astype(np.int32)),
            pa.array(np.ascontiguousarray(context)),
            pa.array(index.astype(np.uint16)),
            pa.array(tallies.example_peaks[used]),
            lists(active.lengths, pa.array(active.token_index.astype(np.uint16))),
            lists(active.lengths, pa.array(active.activation.astype(np.float32))),
        ],
        schema=schemas.examples("float32"),
    )
