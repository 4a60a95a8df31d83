"""Write an unmerged segment: one SAE's activations over consecutive contexts, sorted both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.by_feature import FeatureRows, directory_of, write_feature_file
from featuredb.store.by_token import token_rows, write_token_file
from featuredb.store.feature_order import FeatureOrder
from featuredb.store.files.atomic import folder_in_place, remove_tree
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.positions import stride_of
from featuredb.store.snapshot import FeatureFile, Segment, TokenFile
from ingest.tokens.contexts import ranges


class Codes(NamedTuple):
    """Non-zero activations, all [n]: position uint32, feature_id, activation as stored."""

    position: npt.NDArray[np.uint32]
    feature_id: npt.NDArray[Any]
    activation: schemas.FloatArray


class Sinks(NamedTuple):
    """Positions not recorded for their norm, all [n], sorted by (context_id, token_index)."""

    context_id: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int32]
    norm: npt.NDArray[np.float32]


class Extent(NamedTuple):
    """The contexts (first <= id < end) of a segment, and how many positions were recorded."""

    first_context: int
    end_context: int
    recorded_tokens: int


Order = Callable[[npt.NDArray[Any]], npt.NDArray[np.intp]]
"""Gives the indices that stably sort unsigned keys [n]."""


def stable_order(keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """The indices that stably sort unsigned `keys` [n].

    numpy sorts 16-bit keys by radix, several times faster than wider ones. So wider keys are sorted
    by their low half, then stably by their high half.
    """
    if keys.dtype.itemsize <= 2:
        return np.argsort(keys, kind="stable")
    low = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    high = (keys >> 16).astype(np.uint16)
    if not high.any():
        return low
    order: npt.NDArray[np.intp] = low[np.argsort(high[low], kind="stable")]
    return order


def by_position(codes: Codes) -> Codes:
    """Sort by (position, feature_id), given that the entries of each token are adjacent.

    Contexts in a batch are ordered by length, so tokens are out of order but the features of a
    token are not. Sorting tokens and gathering is cheaper than sorting activations.
    """
    position = codes.position
    if len(position) == 0:
        return codes
    starts = np.flatnonzero(np.concatenate(([True], position[1:] != position[:-1])))
    order = np.argsort(position[starts], kind="stable")
    lengths = np.diff(np.append(starts, len(position)))[order]
    gather = ranges(starts[order], lengths)
    return Codes(position[gather], codes.feature_id[gather], codes.activation[gather])


def write_run(
    layout: Layout,
    segment_id: str,
    sae: str,
    d_sae: int,
    codes: Codes,
    sinks: Sinks,
    extent: Extent,
    order: FeatureOrder,
    order_of: Order = stable_order,
) -> Segment:
    """Write both copies of an unmerged segment atomically.

    Replaces an unfinished segment of the same id. codes: the entries of each token adjacent, by
    feature id. order: the feature order of the by-token copy. order_of: sorts the feature ids.
    Raises `StorageError`.
    """
    final = layout.segment(segment_id)
    remove_tree(final)
    codes = by_position(codes)
    values = codes.activation.dtype.name
    sort = order_of(codes.feature_id)
    sorted_rows = FeatureRows(
        codes.feature_id[sort].astype(np.uint32),
        codes.position[sort],
        codes.activation[sort],
    )
    counts = np.bincount(codes.feature_id, minlength=d_sae)
    with folder_in_place(final) as folder:
        # Any number above the last position keeps features apart.
        stride = stride_of(int(codes.position[-1]) + 1 if len(codes.position) else 0, bits=0)
        write_feature_file(folder / "fm.parquet", sorted_rows, values, stride)
        write_token_file(folder / "tm.parquet", token_rows(*codes), values, d_sae, order)
        np.save(folder / "directory.npy", directory_of(counts))
        write_sinks(folder / "sinks.parquet", sinks)
        n = len(codes.position)
        feature_file = file_entry(layout, folder / "fm.parquet", folder, final, n)
        tokens = pq.read_metadata(folder / "tm.parquet").num_rows
        token_file = file_entry(layout, folder / "tm.parquet", folder, final, tokens)
        return Segment(
            id=segment_id,
            sae=sae,
            level=0,
            first_context=extent.first_context,
            end_context=extent.end_context,
            rows=n,
            values="float32" if values == "float32" else "float16",
            recorded_tokens=extent.recorded_tokens,
            feature_files=(FeatureFile(feature_file, 0, d_sae, 0, stride),),
            token_files=(
                TokenFile(
                    token_file,
                    extent.first_context,
                    extent.end_context,
                    extent.first_context,
                    order.path,
                ),
            ),
            directory=file_entry(layout, folder / "directory.npy", folder, final, d_sae + 1),
            sinks=file_entry(layout, folder / "sinks.parquet", folder, final, len(sinks.norm)),
        )


def write_sinks(path: Path, sinks: Sinks) -> None:
    """Write the sinks table."""
    pq.write_table(pa.table(list(sinks), schema=schemas.SINKS), path, compression="zstd")
