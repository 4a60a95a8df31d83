"""The second copy: one row per token with its active features, for "what fires here"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb import schemas
from featuredb.parquet import ParquetFiles, chunk_to_numpy
from featuredb.snapshot import Segment, TokenFile


class TokenRows(NamedTuple):
    """Tokens with their active features.

    position: uint32 [t] ascending. offsets: int64 [t + 1]: token i owns entries offsets[i] to
    offsets[i+1] of feature_id [n] (ascending within a token) and activation [n].
    """

    position: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    feature_id: npt.NDArray[Any]
    activation: schemas.FloatArray


def write_token_file(path: Path, rows: TokenRows, values: str, d_sae: int) -> None:
    """Write tokens in position order as one Parquet file."""
    schema = schemas.token_major(values, d_sae)
    offsets = pa.array(rows.offsets, pa.int32())
    id_type = schemas.feature_id_type(d_sae)
    ids = pa.array(rows.feature_id.astype(id_type.to_pandas_dtype(), copy=False), id_type)
    activations = pa.array(rows.activation.astype(values, copy=False), schemas.value_type(values))
    table = pa.table(
        [
            pa.array(rows.position, pa.uint32()),
            pa.ListArray.from_arrays(offsets, ids, type=schema.field("feature_ids").type),
            pa.ListArray.from_arrays(offsets, activations, type=schema.field("activations").type),
        ],
        schema=schema,
    )
    pq.write_table(
        table,
        path,
        row_group_size=schemas.TOKEN_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding={
            "position": "DELTA_BINARY_PACKED",
            "feature_ids.list.element": "BYTE_STREAM_SPLIT",
            "activations.list.element": "PLAIN",
        },
        data_page_version="2.0",
        write_statistics=["position"],
    )


def token_rows(
    position: npt.NDArray[np.uint32], feature_id: npt.NDArray[Any], activation: schemas.FloatArray
) -> TokenRows:
    """Group activations sorted by (position, feature_id) by token. All arguments [n]."""
    if len(position) == 0:
        zero = np.zeros(1, np.int64)
        return TokenRows(position, zero, feature_id, activation)
    starts = np.flatnonzero(np.concatenate(([True], position[1:] != position[:-1])))
    offsets = np.append(starts, len(position)).astype(np.int64)
    return TokenRows(position[starts], offsets, feature_id, activation)


class TokenMajor:
    """Reads one segment's second copy."""

    def __init__(self, segment: Segment, files: ParquetFiles, bits: int) -> None:
        self.segment = segment
        self._files = files
        self._bits = bits

    def context(self, context_id: int) -> tuple[npt.NDArray[np.int64], TokenRows]:
        """(token_index int64 [t], rows) of one context; empty when nothing fires in it."""
        for entry in self.segment.token_files:
            if entry.first_context <= context_id < entry.end_context:
                low = (context_id - entry.base_context) << self._bits
                rows = self._range(entry, low, low + (1 << self._bits))
                return rows.position.astype(np.int64) - low, rows
        empty = np.empty(0, np.uint32)
        return np.empty(0, np.int64), token_rows(empty, empty, np.empty(0, self.segment.values))

    def file(self, entry: TokenFile) -> TokenRows:
        """Every token of one file."""
        return _to_rows(self._files.read(entry.file.path))

    def _range(self, entry: TokenFile, low: int, high: int) -> TokenRows:
        metadata = self._files.metadata(entry.file.path)
        groups = []
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(0).statistics
            # A file without rows has a group without statistics.
            if statistics is not None and statistics.max >= low and statistics.min < high:
                groups.append(group)
        table = self._files.read(entry.file.path, groups)
        positions = chunk_to_numpy(table.column("position"))
        start, stop = np.searchsorted(positions, [low, high])
        return _to_rows(table.slice(start, stop - start))


def _to_rows(table: pa.Table) -> TokenRows:
    table = table.combine_chunks()
    ids, values = (_list_column(table, name) for name in ("feature_ids", "activations"))
    offsets = np.asarray(ids.offsets).astype(np.int64)
    return TokenRows(
        chunk_to_numpy(table.column("position")),
        offsets - offsets[0],
        ids.flatten().to_numpy(zero_copy_only=False),
        values.flatten().to_numpy(zero_copy_only=False),
    )


def _list_column(table: pa.Table, name: str) -> pa.ListArray:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
