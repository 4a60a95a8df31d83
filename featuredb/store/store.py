"""One snapshot of a database, opened read-only: the handle every query uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featuredb.store.by_feature import FeatureMajor
from featuredb.store.by_token import TokenMajor
from featuredb.store.corpora import Texts
from featuredb.store.files.location import load_array
from featuredb.store.files.parquet import GroupRanges, ParquetFiles
from featuredb.store.files.remote import RemoteFiles, is_url
from featuredb.store.history import read_remote_snapshot, read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.statistics import Features
from featuredb.store.vectors.search import DirectionSearch


class Store:
    """A database pinned to one snapshot. Later ingests do not change its results.

    Pickles as path and snapshot number, and reopens its files when unpickled.
    """

    def __init__(
        self, root: Path | RemoteFiles, snapshot: Snapshot, memory: int | None = None
    ) -> None:
        self.root = root
        """The database's absolute folder, or its `RemoteFiles` behind a URL."""
        self.snapshot = snapshot
        self.memory = memory
        """Memory limit of SQL in bytes, or None for DuckDB's default."""
        self.files = ParquetFiles(root)
        self.texts = Texts(root, snapshot, self.files)
        self.features = Features(snapshot, self.files)
        self.directions = DirectionSearch(root, snapshot)
        self._feature_major: dict[str, list[FeatureMajor]] = {}
        self._token_major: dict[str, list[TokenMajor]] = {}
        self._graphs: dict[str, GroupRanges] = {}
        self._examples: dict[str, tuple[str, npt.NDArray[np.uint64]]] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | RemoteFiles,
        number: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        memory: int | None = None,
    ) -> Self:
        """Open the live snapshot of the database at `path`, or the given snapshot.

        path: a folder or an fsspec URL. storage_options: for the URL's file system. memory: memory
        limit of SQL in bytes. Raises as `read_snapshot` and `read_remote_snapshot`.
        """
        if isinstance(path, str) and is_url(path):
            path = RemoteFiles(path, storage_options)
        if isinstance(path, RemoteFiles):
            return cls(path, read_remote_snapshot(path, number), memory)
        layout = Layout(Path(path).expanduser().absolute())
        return cls(layout.root, read_snapshot(layout, number), memory)

    @cached_property
    def sae_order(self) -> dict[str, int]:
        """The rank of each SAE in the snapshot, which breaks ties between SAEs."""
        return {sae.name: i for i, sae in enumerate(self.snapshot.saes)}

    def feature_major(self, sae: Sae) -> list[FeatureMajor]:
        """The primary copy of one SAE, a reader per segment, by first context."""
        found = self._feature_major.get(sae.name)
        if found is None:
            found = [
                FeatureMajor(self.root, segment, self.files)
                for segment in self.snapshot.segments_of(sae.name)
            ]
            self._feature_major[sae.name] = found
        return found

    def token_major(self, sae: Sae) -> list[TokenMajor]:
        """The second copy of one SAE, a reader per segment, by first context."""
        found = self._token_major.get(sae.name)
        if found is None:
            bits = self.snapshot.position_bits
            found = [
                TokenMajor(segment, self.files, bits)
                for segment in self.snapshot.segments_of(sae.name)
            ]
            self._token_major[sae.name] = found
        return found

    def examples(self, sae: Sae) -> tuple[str, npt.NDArray[np.uint64]]:
        """The examples file of one SAE, and its row offsets uint64 [d_sae + 1] by feature."""
        found = self._examples.get(sae.name)
        if found is None:
            tables = next(t for t in self.snapshot.derived.saes if t.sae == sae.name)
            path = tables.examples_directory.path
            found = tables.examples.path, load_array(self.root, path)
            self._examples[sae.name] = found
        return found

    def graph_groups(self, path: str) -> GroupRanges:
        """The feature range of each row group of a neighbor table."""
        found = self._graphs.get(path)
        if found is None:
            found = self._graphs[path] = GroupRanges.of(self.files, path)
        return found

    def close(self) -> None:
        """Close every file. A closed store reopens them on demand."""
        self.files.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.root, self.snapshot.number, self.memory)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, snapshot {self.snapshot.number})"


def _reopen(root: Path | RemoteFiles, number: int, memory: int | None) -> Store:
    return Store.open(root, number, memory=memory)
