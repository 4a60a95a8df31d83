"""One snapshot of a database, opened read-only: the handle every query uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featuredb.errors import OptionError
from featuredb.store.by_feature import SegmentByFeature
from featuredb.store.by_token import SegmentByToken
from featuredb.store.corpora import Texts
from featuredb.store.files.location import Root, load_array, location_of
from featuredb.store.files.parquet import GroupRanges, ParquetFiles
from featuredb.store.files.remote import RemoteFiles, is_url
from featuredb.store.history import read_remote_snapshot, read_snapshot
from featuredb.store.labels import StoredLabels
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.statistics import Features
from featuredb.store.vectors.search import DirectionSearch


class Store:
    """A database pinned to one snapshot. Later ingests do not change its results.

    Pickles as path and snapshot number, and reopens its files when unpickled.
    """

    def __init__(self, root: Root, snapshot: Snapshot, memory: int | None = None) -> None:
        self.root = root
        self.location = location_of(root)
        self.snapshot = snapshot
        self.memory = memory
        """Memory limit of SQL in bytes, or None for DuckDB's default."""
        self.files = ParquetFiles(root)
        self.texts = Texts(root, snapshot, self.files)
        self.labels = StoredLabels(snapshot, self.files)
        self.features = Features(snapshot, self.files, self.labels)
        self.directions = DirectionSearch(root, snapshot)
        self._by_feature: dict[str, list[SegmentByFeature]] = {}
        self._by_token: dict[str, list[SegmentByToken]] = {}
        self._graphs: dict[str, GroupRanges] = {}
        self._examples: dict[str, tuple[str, npt.NDArray[np.uint64]]] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        number: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        memory: int | None = None,
    ) -> Self:
        """Open the live snapshot of the database at `path`, or the given snapshot.

        path: a folder or an fsspec URL. storage_options: for the URL's file system. memory: memory
        limit of SQL in bytes. Raises as `read_snapshot` and `read_remote_snapshot`, and
        `OptionError` for a number that is none.
        """
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise OptionError(f"snapshot must be the number of one, not {number!r}")
        if isinstance(path, str) and is_url(path):
            remote = RemoteFiles(path, storage_options)
            return cls(remote, read_remote_snapshot(remote, number), memory)
        layout = Layout(Path(path).expanduser().absolute())
        return cls(layout.root, read_snapshot(layout, number), memory)

    @cached_property
    def sae_order(self) -> dict[str, int]:
        """The rank of each SAE in the snapshot, which breaks ties between SAEs."""
        return {sae.name: i for i, sae in enumerate(self.snapshot.saes)}

    def by_feature(self, sae: Sae) -> list[SegmentByFeature]:
        """The primary copy of one SAE, a reader per segment, by first context."""
        copies = self._by_feature.get(sae.name)
        if copies is None:
            copies = [
                SegmentByFeature(self.root, segment, self.files)
                for segment in self.snapshot.segments_of(sae.name)
            ]
            self._by_feature[sae.name] = copies
        return copies

    def by_token(self, sae: Sae) -> list[SegmentByToken]:
        """The second copy of one SAE, a reader per segment, by first context."""
        copies = self._by_token.get(sae.name)
        if copies is None:
            bits = self.snapshot.position_bits
            copies = [
                SegmentByToken(segment, self.files, bits)
                for segment in self.snapshot.segments_of(sae.name)
            ]
            self._by_token[sae.name] = copies
        return copies

    def examples(self, sae: Sae) -> tuple[str, npt.NDArray[np.uint64]]:
        """The examples file of one SAE, and its row offsets uint64 [d_sae + 1] by feature."""
        examples = self._examples.get(sae.name)
        if examples is None:
            tables = next(t for t in self.snapshot.derived.saes if t.sae == sae.name)
            path = tables.examples_directory.path
            examples = tables.examples.path, load_array(self.root, path)
            self._examples[sae.name] = examples
        return examples

    def graph_groups(self, path: str) -> GroupRanges:
        """The feature range of each row group of a neighbor table."""
        ranges = self._graphs.get(path)
        if ranges is None:
            ranges = self._graphs[path] = GroupRanges.of(self.files, path)
        return ranges

    def close(self) -> None:
        """Close every file. A closed store reopens them on demand."""
        self.files.close()

    def __reduce__(self) -> tuple[object, ...]:
        path, options = self.location.address
        return Store.open, (path, self.snapshot.number, options, self.memory)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, snapshot {self.snapshot.number})"
