"""Contexts kept ready per feature: the strongest, and samples from each fifth of the rest.

Order and kinds stand in `featuredb.schemas.EXAMPLES`. Sampling ranks contexts by a hash of
(feature, context), so it depends on the content alone, not on how it was ingested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb import schemas
from ingest.merge import Bucket
from ingest.runs import ranges


def bucket_examples(bucket: Bucket) -> pa.Table:
    """Rows of EXAMPLES for the bucket's features, sorted by (feature_id, kind, rank)."""
    feature, context = bucket.feature, bucket.context_id
    if len(feature) == 0:
        return schemas.EXAMPLES.empty_table()
    activation = bucket.activation.astype(np.float32)
    new = np.concatenate(([True], (feature[1:] != feature[:-1]) | (context[1:] != context[:-1])))
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(feature)))
    peak = np.maximum.reduceat(activation, starts)
    group_feature, group_context = feature[starts], context[starts]
    # First token of the context that reaches the maximum.
    reaching = np.flatnonzero(activation == np.repeat(peak, lengths))
    reached_group = np.searchsorted(starts, reaching, side="right") - 1
    _, first_reaching = np.unique(reached_group, return_index=True)
    peak_index = bucket.token_index[reaching[first_reaching]]

    ordered = np.lexsort((group_context, -peak, group_feature))
    per_feature = np.bincount(group_feature, minlength=len(bucket.counts))
    before = np.repeat(np.cumsum(per_feature) - per_feature, per_feature)
    rank = np.arange(len(ordered)) - before
    total = np.repeat(per_feature, per_feature)

    top = rank < schemas.EXAMPLES_TOP
    fifth = schemas.EXAMPLES_QUINTILES - rank * schemas.EXAMPLES_QUINTILES // total
    sampled = _sample(bucket.first_feature, group_feature[ordered], group_context[ordered], fifth)
    chosen = np.concatenate((ordered[top], ordered[sampled]))
    kind = np.concatenate((np.zeros(int(top.sum()), np.int64), fifth[sampled]))

    final = np.lexsort((group_context[chosen], -peak[chosen], kind, group_feature[chosen]))
    chosen, kind = chosen[final], kind[final]
    cell = group_feature[chosen].astype(np.int64) * (schemas.EXAMPLES_QUINTILES + 1) + kind
    fresh = np.concatenate(([True], cell[1:] != cell[:-1]))
    first = np.flatnonzero(fresh)
    place = np.arange(len(cell)) - np.repeat(first, np.diff(np.append(first, len(cell)))) + 1

    gather = ranges(starts[chosen], lengths[chosen])
    offsets = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(lengths[chosen], out=offsets[1:])
    return pa.table(
        [
            pa.array(group_feature[chosen] + np.uint32(bucket.first_feature), pa.uint32()),
            pa.array(kind.astype(np.uint8)),
            pa.array(place.astype(np.int32)),
            pa.array(group_context[chosen]),
            pa.array(peak_index[chosen].astype(np.uint16)),
            pa.array(peak[chosen]),
            pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(bucket.token_index[gather].astype(np.uint16))
            ),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(activation[gather])),
        ],
        schema=schemas.EXAMPLES,
    )


def _sample(
    first_feature: int,
    feature: npt.NDArray[np.uint32],
    context: npt.NDArray[np.int64],
    fifth: npt.NDArray[Any],
) -> npt.NDArray[np.int64]:
    """Indices of the EXAMPLES_PER_QUINTILE contexts of smallest hash in each (feature, fifth)."""
    mixed = _mix(context.astype(np.uint64) ^ _mix(feature.astype(np.uint64) + first_feature))
    order = np.lexsort((mixed, fifth, feature))
    cell = feature[order].astype(np.int64) * (schemas.EXAMPLES_QUINTILES + 1) + fifth[order]
    fresh = np.flatnonzero(np.concatenate(([True], cell[1:] != cell[:-1])))
    place = np.arange(len(cell)) - np.repeat(fresh, np.diff(np.append(fresh, len(cell))))
    return np.sort(order[place < schemas.EXAMPLES_PER_QUINTILE])


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014), element by element."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
