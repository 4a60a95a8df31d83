"""Table of statistics per feature, from the tallies of `ingest.derive.tally`.

Definitions are in `featuredb.store.schemas.FEATURES`. Density is active tokens over recorded
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from ingest.derive.tally import Tallies


def statistics_table(
    first_feature: int, tallies: Tallies, recorded_tokens: int, texts: Sequence[str]
) -> pa.Table:
    """One row per feature, with the columns of FEATURES that depend on activations.

    texts: the text of each token id.
    """
    n_features = len(tallies.numbers)
    counts, contexts, documents = tallies.numbers.T
    silent = counts == 0
    low, high, mean, deviation = tallies.moments.T

    def known(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=silent)

    columns = {
        "feature_id": pa.array(np.arange(first_feature, first_feature + n_features), pa.int64()),
        "count": pa.array(counts, pa.int64()),
        "density": pa.array(counts / max(1, recorded_tokens), pa.float64()),
        "n_contexts": pa.array(contexts, pa.int64()),
        "n_documents": pa.array(documents, pa.int64()),
        "min_activation": known(low.astype(np.float32), pa.float32()),
        "max_activation": known(high.astype(np.float32), pa.float32()),
        "mean_activation": known(mean, pa.float64()),
        "std_activation": known(deviation, pa.float64()),
        "quantiles": _quantiles(tallies, ~silent),
        "histogram": lists(
            ~silent * schemas.HISTOGRAM_BINS, pa.array(tallies.histogram[~silent].reshape(-1))
        ),
        "top_tokens": _top_tokens(tallies, texts),
    }
    return pa.table(columns)


def lists(lengths: npt.NDArray[Any], values: pa.Array) -> pa.ListArray:
    """Split `values` into consecutive lists of these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _quantiles(tallies: Tallies, fired: npt.NDArray[np.bool_]) -> pa.ListArray:
    levels = np.array(schemas.QUANTILES)
    structs = pa.StructArray.from_arrays(
        [
            pa.array(np.tile(levels, int(fired.sum()))),
            pa.array(tallies.quantiles[fired].reshape(-1), pa.float32()),
        ],
        fields=list(schemas.QUANTILE),
    )
    return lists(fired * len(levels), structs)


def _top_tokens(tallies: Tallies, texts: Sequence[str]) -> pa.ListArray:
    used = np.arange(tallies.tokens.shape[1]) < tallies.n_tokens[:, None]
    chosen = tallies.tokens[used]
    structs = pa.StructArray.from_arrays(
        [
            pa.array([texts[token] for token in chosen[:, 0]], pa.string()),
            pa.array(chosen[:, 1], pa.int64()),
            pa.array(tallies.token_means[used], pa.float32()),
        ],
        fields=list(schemas.TOKEN_COUNT),
    )
    return lists(tallies.n_tokens, structs)
