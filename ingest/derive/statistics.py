"""Statistics per feature, from one pass over its stored activations.

Definitions stand in `featuredb.schemas.FEATURES`; density is active tokens over recorded tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb import schemas
from ingest.merge import Bucket
from ingest.runs import stable_order

LookUp = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


class TokenLookUp(NamedTuple):
    """What statistics need of the corpus.

    document: context ids [n] -> document ids [n]. token: (context ids, token indexes) [n] ->
    token ids int64 [n]. texts: how each token id reads.
    """

    document: LookUp
    token: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int32]], npt.NDArray[np.int64]]
    texts: Sequence[str]


def bucket_statistics(bucket: Bucket, recorded_tokens: int, look_up: TokenLookUp) -> pa.Table:
    """One row per feature of the bucket, with the columns of FEATURES that activations give."""
    n_features = bucket.end_feature - bucket.first_feature
    counts = bucket.counts
    fired = counts > 0
    starts = (np.cumsum(counts) - counts)[fired]
    activation = bucket.activation.astype(np.float32)

    def spread(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
        whole = np.zeros(n_features, dtype=values.dtype)
        whole[fired] = values
        return pa.array(whole, kind, mask=~fired)

    low = high = np.empty(0, np.float32)
    if len(activation):
        low = np.minimum.reduceat(activation, starts)
        high = np.maximum.reduceat(activation, starts)
    mean, deviation = _moments(activation, starts, counts[fired])
    columns = {
        "feature_id": pa.array(np.arange(bucket.first_feature, bucket.end_feature), pa.int64()),
        "count": pa.array(counts, pa.int64()),
        "density": pa.array(counts / max(1, recorded_tokens), pa.float64()),
        "n_contexts": pa.array(_changes(bucket.feature, bucket.context_id, n_features)),
        "n_documents": pa.array(
            _changes(bucket.feature, look_up.document(bucket.context_id), n_features)
        ),
        "min_activation": spread(low, pa.float32()),
        "max_activation": spread(high, pa.float32()),
        "mean_activation": spread(mean, pa.float64()),
        "std_activation": spread(deviation, pa.float64()),
        "quantiles": _quantiles(bucket, activation),
        "histogram": _histogram(bucket, activation, low, high),
        "top_tokens": _top_tokens(bucket, activation, look_up),
    }
    return pa.table(columns)


def _moments(
    activation: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each group of `counts` values beginning at `starts`."""
    if len(activation) == 0:
        return np.empty(0, np.float64), np.empty(0, np.float64)
    wide = activation.astype(np.float64)
    mean = np.add.reduceat(wide, starts) / counts
    # In place: a bucket may be one feature of many million rows.
    wide -= np.repeat(mean, counts)
    np.square(wide, out=wide)
    return mean, np.sqrt(np.add.reduceat(wide, starts) / counts)


def _changes(
    feature: npt.NDArray[np.uint32], group: npt.NDArray[np.int64], n_features: int
) -> npt.NDArray[np.int64]:
    """Distinct groups per feature [n_features]; rows sorted by (feature, group)."""
    if len(feature) == 0:
        return np.zeros(n_features, np.int64)
    new = np.concatenate(([True], (feature[1:] != feature[:-1]) | (group[1:] != group[:-1])))
    return np.bincount(feature[new], minlength=n_features).astype(np.int64)


def _lists(lengths: npt.NDArray[Any], values: pa.Array) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _quantiles(bucket: Bucket, activation: npt.NDArray[np.float32]) -> pa.ListArray:
    """Quantile q is the ceil(q n)-th smallest stored value."""
    order = _by_feature(bucket, stable_order(_ascending(bucket.activation)))
    ordered = activation[order]
    fired = bucket.counts > 0
    counts = bucket.counts[fired]
    starts = (np.cumsum(bucket.counts) - bucket.counts)[fired]
    levels = np.array(schemas.QUANTILES)
    at = np.ceil(levels[None, :] * counts[:, None]).astype(np.int64) - 1
    picked = ordered[starts[:, None] + np.clip(at, 0, counts[:, None] - 1)].reshape(-1)
    structs = pa.StructArray.from_arrays(
        [pa.array(np.tile(levels, len(counts))), pa.array(picked, pa.float32())],
        fields=list(schemas.QUANTILE),
    )
    return _lists(fired * len(levels), structs)


def _by_feature(bucket: Bucket, order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """`order` sorted once more, by feature, what is equal staying as it is."""
    feature = bucket.feature
    if bucket.end_feature - bucket.first_feature <= 1 << 16:
        feature = feature.astype(np.uint16)
    sorted_order: npt.NDArray[np.intp] = order[stable_order(feature[order])]
    return sorted_order


def _ascending(values: npt.NDArray[np.floating]) -> npt.NDArray[np.unsignedinteger]:
    """Unsigned keys in the order of float16 or float32 values, which sort by radix.

    The bits of a positive float are in its order; those of a negative one in the opposite.
    """
    if values.dtype == np.float16:
        narrow = values.view(np.uint16)
        return np.where(narrow >> 15, ~narrow, narrow | np.uint16(1 << 15))
    wide = values.view(np.uint32)
    return np.where(wide >> 31, ~wide, wide | np.uint32(1 << 31))


def _histogram(
    bucket: Bucket,
    activation: npt.NDArray[np.float32],
    low: npt.NDArray[np.float32],
    high: npt.NDArray[np.float32],
) -> pa.ListArray:
    bins = schemas.HISTOGRAM_BINS
    fired = bucket.counts > 0
    counts = bucket.counts[fired]
    floor = np.minimum(0.0, low.astype(np.float64))
    width = np.maximum(0.0, high.astype(np.float64)) - floor
    rank = np.repeat(np.arange(len(counts)), counts)
    scaled = (activation.astype(np.float64) - floor[rank]) * bins / width[rank]
    cell = np.clip(np.ceil(scaled).astype(np.int64) - 1, 0, bins - 1)
    heights = np.bincount(rank * bins + cell, minlength=len(counts) * bins)
    return _lists(fired * bins, pa.array(heights.astype(np.int64)))


def _top_tokens(
    bucket: Bucket, activation: npt.NDArray[np.float32], look_up: TokenLookUp
) -> pa.ListArray:
    """Tokens by the feature's total activation on them, ties by token id.

    By count, a feature that fires faintly on every "the" would be described by it.
    """
    n_features = bucket.end_feature - bucket.first_feature
    token = look_up.token(bucket.context_id, bucket.token_index).astype(np.uint32)
    order = _by_feature(bucket, stable_order(token))
    token, feature = token[order], bucket.feature[order]
    if len(token):
        new = (token[1:] != token[:-1]) | (feature[1:] != feature[:-1])
        starts = np.flatnonzero(np.concatenate(([True], new)))
        sums = np.add.reduceat(activation[order].astype(np.float64), starts)
    else:
        starts, sums = np.empty(0, np.int64), np.empty(0)
    counts = np.diff(np.append(starts, len(token)))
    pair_feature, pair_token = feature[starts], token[starts]
    ranked = np.lexsort((pair_token, -sums, pair_feature))
    pairs = np.bincount(pair_feature, minlength=n_features)
    first = np.repeat(np.cumsum(pairs) - pairs, pairs)
    kept = ranked[np.arange(len(ranked)) - first < schemas.TOP_TOKENS]
    structs = pa.StructArray.from_arrays(
        [
            pa.array([look_up.texts[t] for t in pair_token[kept]], pa.string()),
            pa.array(counts[kept], pa.int64()),
            pa.array((sums[kept] / counts[kept]).astype(np.float32), pa.float32()),
        ],
        fields=list(schemas.TOKEN_COUNT),
    )
    return _lists(np.minimum(pairs, schemas.TOP_TOKENS), structs)
