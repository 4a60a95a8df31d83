"""Write an unmerged segment: one SAE's activations over consecutive contexts, sorted both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.by_feature import FeatureRows, directory_of, write_feature_file
from featuredb.store.by_token import TokenRows, write_token_file
from featuredb.store.feature_order import FeatureOrder
from featuredb.store.files.atomic import folder_in_place, remove_tree
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.positions import stride_of
from featuredb.store.snapshot import FeatureFile, Segment, TokenFile
from ingest.extract import sorting


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


def sort_both_ways(
    codes: Codes, directory: npt.NDArray[np.uint64], order: FeatureOrder
) -> tuple[FeatureRows, TokenRows]:
    """The rows of the by-feature copy, and those of the by-token copy with gaps for feature ids.

    codes: as of `write_run`. directory: as of `directory_of`.
    """
    tokens = sorting.tokens_of(codes.position)
    kind = codes.activation.dtype
    bits = codes.activation.view(f"u{kind.itemsize}")
    starts = directory.astype(np.int64)
    token, feature_bits = sorting.by_feature(tokens, codes.feature_id, bits, starts)
    offsets = np.concatenate(([0], np.cumsum(tokens.length))).astype(np.int64)
    gaps, token_bits = sorting.by_token(token, feature_bits, starts, order.features, offsets)
    feature_id = np.repeat(np.arange(len(starts) - 1, dtype=np.uint32), np.diff(starts))
    return (
        FeatureRows(feature_id, tokens.position[token], feature_bits.view(kind)),
        TokenRows(tokens.position, offsets, gaps, token_bits.view(kind)),
    )


def write_run(
    layout: Layout,
    segment_id: str,
    sae: str,
    d_sae: int,
    codes: Codes,
    sinks: Sinks,
    extent: Extent,
    order: FeatureOrder,
) -> Segment:
    """Write both copies of an unmerged segment atomically.

    Replaces an unfinished segment of the same id. codes: the entries of each token adjacent, by
    feature id. order: the feature order of the by-token copy. Raises `StorageError`.
    """
    final = layout.segment(segment_id)
    remove_tree(final)
    values = codes.activation.dtype.name
    directory = directory_of(np.bincount(codes.feature_id, minlength=d_sae))
    by_feature, by_token = sort_both_ways(codes, directory, order)
    with folder_in_place(final) as folder:
        # Any number above the last position keeps features apart.
        last = int(by_token.position[-1]) + 1 if len(by_token.position) else 0
        stride = stride_of(last, bits=0)
        write_feature_file(folder / "fm.parquet", by_feature, values, stride)
        write_token_file(folder / "tm.parquet", by_token, values, d_sae)
        np.save(folder / "directory.npy", directory)
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
