"""The ``features`` table: every feature's statistics, by row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.files.parquet import ParquetFiles, chunk_to_numpy, list_values
from featuredb.store.labels import StoredLabels
from featuredb.store.snapshot import Sae, Snapshot

_CACHED_GROUPS = 512
_CACHED_WHOLE = 32
"""Groups of every column, some 2 MB each."""
SUMMARY_COLUMNS = ("density", "max_activation", "top_tokens", "promoted_tokens", "label")
"""What answers show of a feature besides its name and score."""

_SUMMARY = ["sae", "feature_id", "density", "max_activation", "top_tokens", "promoted_tokens"]


class Features:
    """Statistics of one snapshot's features. Rows are in the order of `schemas.FEATURES`."""

    def __init__(self, snapshot: Snapshot, files: ParquetFiles, labels: StoredLabels) -> None:
        self._labels = labels
        self._path = snapshot.derived.features.path
        self._files = files
        self._first_row: dict[str, int] = {}
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        # Decoding a group takes most of the time of a card.
        read = partial(_whole_group, files, self._path)
        self._whole = lru_cache(_CACHED_WHOLE)(read)
        row = 0
        for sae in snapshot.saes:
            self._first_row[sae.name] = row
            row += sae.d_sae

    def row(self, sae: Sae, feature: int) -> int:
        """The row of a feature."""
        return self._first_row[sae.name] + feature

    def count(self, sae: Sae) -> npt.NDArray[np.int64]:
        """Stored activations of each feature, int64 [d_sae]."""
        return self._of(sae, chunk_to_numpy(self._numbers.column("count")))

    def documents(self, sae: Sae) -> npt.NDArray[np.int64]:
        """How many documents each feature is active in, int64 [d_sae]."""
        return self._of(sae, chunk_to_numpy(self._numbers.column("n_documents")))

    def max_activation(self, sae: Sae) -> npt.NDArray[np.float32]:
        """Largest stored activation of each feature, float32 [d_sae], NaN where it never fires."""
        return self._of(sae, self._maxima)

    def card(self, sae: Sae, feature: int) -> pa.Table:
        """Every column of one feature, one row of `schemas.FEATURES`."""
        row = self.row(sae, feature)
        starts = self._files.group_starts(self._path)
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return self._whole(group).slice(row - int(starts[group]), 1).combine_chunks()

    def summaries(self, rows: Sequence[int]) -> pa.Table:
        """The columns that answers show of other features, one row per entry of `rows`, in that
        order.

        Columns sae, feature_id, density, max_activation, and top_tokens and promoted_tokens as
        list<string> (only the tokens, strongest first), and label, the preferred one or null.
        """
        starts = self._files.group_starts(self._path)
        groups = np.searchsorted(starts, np.asarray(rows, np.int64), side="right") - 1
        missing = [int(group) for group in groups if int(group) not in self._groups]
        self._files.fetch(self._path, missing, _SUMMARY)
        pieces = [
            self._group(int(group)).slice(row - int(starts[group]), 1)
            for row, group in zip(rows, groups, strict=True)
        ]
        found = pa.concat_tables(pieces or [self._group(0).slice(0, 0)]).combine_chunks()
        names = (found.column(name).to_pylist() for name in ("sae", "feature_id"))
        return found.append_column("label", self._labels.column(*names))

    @cached_property
    def _numbers(self) -> pa.Table:
        columns = ["count", "n_documents", "max_activation"]
        return self._files.read(self._path, columns=columns).combine_chunks()

    @cached_property
    def _maxima(self) -> npt.NDArray[np.float32]:
        # Nulls come out of to_numpy as NaN.
        values: npt.NDArray[np.float32] = chunk_to_numpy(self._numbers.column("max_activation"))
        return values

    def _of(self, sae: Sae, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        first = self._first_row[sae.name]
        return values[first : first + sae.d_sae]

    def _group(self, group: int) -> pa.Table:
        table = self._groups.get(group)
        if table is None:
            table = self._files.read(self._path, [group], _SUMMARY).combine_chunks()
            for name in ("top_tokens", "promoted_tokens"):
                position = table.column_names.index(name)
                table = table.set_column(position, name, tokens_only(table.column(name)))
            self._groups[group] = table
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(group)
        return table


def _whole_group(files: ParquetFiles, path: str, group: int) -> pa.Table:
    return files.read(path, [group], schemas.FEATURES.names)


def summaries_of(features: pa.Table) -> pa.Table:
    """Rows of `schemas.SUMMARIES` from rows of `schemas.FEATURES`."""
    table = features.select(schemas.SUMMARIES.names)
    for name in ("top_tokens", "promoted_tokens"):
        at = table.column_names.index(name)
        table = table.set_column(at, name, tokens_only(table.column(name)))
    return table.cast(schemas.SUMMARIES)


def tokens_only(column: pa.ChunkedArray) -> pa.ListArray:
    """list<struct<token, …>> as list<string>."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], column.type)
    structs = list_values(lists)
    offsets = np.asarray(lists.offsets).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets - offsets[0], pa.int32()), structs.field("token")
    )
