"""The second copy: one row per token with its active features, for "what fires here".

A file lists a token's features by rank in the SAE's `FeatureOrder`, as gaps. Readers turn that
back into ascending feature ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import CorruptDatabaseError
from featuredb.store import schemas
from featuredb.store.feature_order import FeatureOrder, read_feature_order
from featuredb.store.files.parquet import ParquetFiles, chunk_to_numpy, list_values
from featuredb.store.positions import pack, token_mask
from featuredb.store.snapshot import Segment, TokenFile
from featuredb.store.values import value_encoding


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
    """Write tokens in position order as one Parquet file.

    rows.feature_id holds gaps: each token's ranks in the `FeatureOrder`, ascending, as the
    difference to the rank before.

    Gaps byte-stream-split, activations as `value_encoding` says, zstd-1: 2.82 bytes per activation
    on the demo's SAE, 3.26 with plain ids. Data pages of version 1, as those of version 2 leave
    the lengths of the lists uncompressed: 0.05 bytes per activation and list.
    """
    schema = schemas.by_token(values, d_sae)
    activation = rows.activation.astype(values, copy=False)
    id_type = schemas.feature_id_type(d_sae)
    lists = {
        "gaps": pa.array(rows.feature_id.astype(id_type.to_pandas_dtype()), id_type),
        "activations": pa.array(activation, schemas.value_type(values)),
    }
    encoding = value_encoding(activation)
    offsets = pa.array(rows.offsets, pa.int32())
    table = pa.table(
        [
            pa.array(rows.position, pa.uint32()),
            *(
                pa.ListArray.from_arrays(offsets, flat, type=schema.field(name).type)
                for name, flat in lists.items()
            ),
        ],
        schema=schema,
    )
    pq.write_table(
        table,
        path,
        row_group_size=schemas.TOKEN_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=[] if encoding else ["activations.list.element"],
        column_encoding={
            "position": "DELTA_BINARY_PACKED",
            "gaps.list.element": "BYTE_STREAM_SPLIT",
            **({"activations.list.element": encoding} if encoding else {}),
        },
        data_page_version="1.0",
        write_statistics=["position"],
    )


def _from_gaps(rows: TokenRows, order: FeatureOrder) -> TokenRows:
    """The tokens of a file with their feature ids. rows.feature_id holds the gaps."""
    firsts = rows.offsets[:-1]
    ranks = np.cumsum(rows.feature_id, dtype=np.int64)
    ranks -= np.repeat(ranks[firsts] - rows.feature_id[firsts], np.diff(rows.offsets))
    # The list's own type is the narrowest that holds a feature id.
    features = order.features.astype(rows.feature_id.dtype, copy=False)[ranks]
    sort = _within_tokens(rows.offsets, features)
    return rows._replace(feature_id=features[sort], activation=rows.activation[sort])


def _within_tokens(offsets: npt.NDArray[np.int64], keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Indices that sort each token's keys [n], which are distinct and below 2**32."""
    token = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
    return np.argsort((token << np.uint64(32)) | keys)


class TokenFeatures(NamedTuple):
    """Tokens with the features active on them, without activations.

    keys: int64 [t] ascending, ``context_id << bits | token_index``. counts: int64 [t], how many of
    feature_id [n] are token i's. They are in no particular order.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]


_GROUPS_AT_ONCE = 8
"""Row groups of which `SegmentByToken.features_at` holds the lists at once: 16,384 tokens."""


class SegmentByToken:
    """Reads one segment's second copy."""

    def __init__(self, segment: Segment, files: ParquetFiles, bits: int) -> None:
        self.segment = segment
        self._files = files
        self._bits = bits
        self._orders: dict[str, FeatureOrder] = {}
        self._extents: dict[str, npt.NDArray[np.int64]] = {}

    def context(self, context_id: int) -> tuple[npt.NDArray[np.int64], TokenRows]:
        """(token_index int64 [t], rows) of one context. Empty when nothing fires in it."""
        for entry in self.segment.token_files:
            if entry.first_context <= context_id < entry.end_context:
                low = pack(context_id - entry.base_context, 0, self._bits)
                rows = self._range(entry, low, low + token_mask(self._bits) + 1)
                return rows.position.astype(np.int64) - low, rows
        empty = np.empty(0, np.uint32)
        rows = TokenRows(empty, np.zeros(1, np.int64), empty, np.empty(0, self.segment.values))
        return np.empty(0, np.int64), rows

    def features_at(
        self,
        contexts: npt.NDArray[np.int64],
        chosen: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
    ) -> Iterator[TokenFeatures]:
        """The features on tokens of some contexts, int64 ascending, a few row groups at a time.

        Only row groups that may hold one of the contexts are read, and of their tokens only those
        whose keys `chosen` says yes to are decoded.
        """
        for entry in self.segment.token_files:
            low, high = np.searchsorted(contexts, [entry.first_context, entry.end_context])
            local = contexts[low:high] - entry.base_context
            first, last = self._extent(entry) >> self._bits
            held = np.searchsorted(local, last, "right") > np.searchsorted(local, first)
            groups = np.flatnonzero(held)
            for at in range(0, len(groups), _GROUPS_AT_ONCE):
                some = groups[at : at + _GROUPS_AT_ONCE].tolist()
                table = self._files.read(entry.file.path, some, ["position", "gaps"])
                keys = chunk_to_numpy(table.column("position")).astype(np.int64)
                keys += entry.base_context << self._bits
                rows = np.flatnonzero(chosen(keys))
                if len(rows):
                    yield self._features(entry, keys[rows], rows, table.column("gaps"))

    def _features(
        self,
        entry: TokenFile,
        keys: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        column: pa.ChunkedArray,
    ) -> TokenFeatures:
        """The features of some rows of a column of gaps."""
        lists = column.combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        offsets = np.asarray(lists.offsets).astype(np.int64)
        gaps = list_values(lists).to_numpy(zero_copy_only=False)
        starts = offsets[:-1] - offsets[0]
        counts = np.diff(offsets)[rows]
        firsts = np.cumsum(counts) - counts
        if len(rows) < len(starts):
            gaps = gaps[np.arange(counts.sum()) + np.repeat(starts[rows] - firsts, counts)]
        ranks = np.cumsum(gaps, dtype=np.int64)
        ranks -= np.repeat(ranks[firsts] - gaps[firsts], counts)
        try:
            return TokenFeatures(keys, counts, self._order(entry.order).features[ranks])
        except IndexError as error:
            raise _unknown_rank(entry) from error

    def _extent(self, entry: TokenFile) -> npt.NDArray[np.int64]:
        """First and last position of each row group, int64 [2, groups]. -1 where it has none."""
        extent = self._extents.get(entry.file.path)
        if extent is None:
            metadata = self._files.metadata(entry.file.path)
            groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
            known = [group.column(0).statistics for group in groups]
            ends = [(-1, -1) if s is None else (s.min, s.max) for s in known]
            extent = self._extents[entry.file.path] = np.array(ends, np.int64).reshape(-1, 2).T
        return extent

    def file(self, entry: TokenFile) -> TokenRows:
        """Every token of one file."""
        return self._to_rows(entry, self._files.read(entry.file.path))

    def pieces(self, entry: TokenFile, groups: int) -> Iterator[TokenRows]:
        """Every token of one file, so many row groups at a time."""
        for wanted in self.cuts(entry, groups):
            yield self.piece(entry, wanted)

    def cuts(self, entry: TokenFile, groups: int) -> Iterator[range]:
        """A file's row groups, so many at a time."""
        total = self._files.metadata(entry.file.path).num_row_groups
        for first in range(0, total, groups):
            yield range(first, min(total, first + groups))

    def piece(self, entry: TokenFile, groups: range) -> TokenRows:
        """The tokens of some row groups of one file."""
        return self._to_rows(entry, self._files.read(entry.file.path, groups))

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
        return self._to_rows(entry, table.slice(start, stop - start))

    def _to_rows(self, entry: TokenFile, table: pa.Table) -> TokenRows:
        table = table.combine_chunks()
        ids, values = (_list_column(table, name) for name in ("gaps", "activations"))
        offsets = np.asarray(ids.offsets).astype(np.int64)
        rows = TokenRows(
            chunk_to_numpy(table.column("position")),
            offsets - offsets[0],
            list_values(ids).to_numpy(zero_copy_only=False),
            list_values(values).to_numpy(zero_copy_only=False),
        )
        try:
            return _from_gaps(rows, self._order(entry.order))
        except IndexError as error:
            raise _unknown_rank(entry) from error

    def _order(self, path: str) -> FeatureOrder:
        order = self._orders.get(path)
        if order is None:
            order = self._orders[path] = read_feature_order(self._files, path)
        return order


def _unknown_rank(entry: TokenFile) -> CorruptDatabaseError:
    return CorruptDatabaseError(
        f"{entry.file.path} lists features that {entry.order} does not have: "
        "run `featuredb verify` to see what is damaged, and restore it from a copy"
    )


def _list_column(table: pa.Table, name: str) -> pa.ListArray:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
