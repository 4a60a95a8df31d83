"""One snapshot of a database, opened read-only: the handle every query stands on."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from featuredb.feature_major import FeatureMajor
from featuredb.features import Features
from featuredb.layout import Layout
from featuredb.parquet import GroupRanges, ParquetFiles, load_array
from featuredb.snapshot import File, Sae, Snapshot, Vectors, read_snapshot
from featuredb.texts import Texts
from featuredb.token_major import TokenMajor
from featuredb.vectors import Directions, read_directions

if TYPE_CHECKING:
    import duckdb


class Store:
    """A database pinned to one snapshot. Later ingests do not change what it answers.

    Pickles as path and snapshot number, and opens its files again where it is unpickled.
    """

    def __init__(self, layout: Layout, snapshot: Snapshot) -> None:
        self.layout = layout
        self.snapshot = snapshot
        self.files = ParquetFiles(layout.root)
        self.texts = Texts(layout.root, snapshot, self.files)
        self.features = Features(snapshot, self.files)
        self._feature_major: dict[str, list[FeatureMajor]] = {}
        self._token_major: dict[str, list[TokenMajor]] = {}
        self._graphs: dict[str, GroupRanges] = {}
        self._directions: dict[str, Directions] = {}
        self._examples: dict[str, tuple[str, npt.NDArray[np.uint64]]] = {}
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | os.PathLike[str], number: int | None = None) -> Self:
        """Open the live snapshot of the database at `path`, or the one of that number.

        Raises what `snapshot.read_snapshot` raises.
        """
        layout = Layout(Path(path).expanduser().absolute())
        return cls(layout, read_snapshot(layout, number))

    @property
    def root(self) -> Path:
        """The database's folder, absolute."""
        return self.layout.root

    @cached_property
    def sae_order(self) -> dict[str, int]:
        """Where each SAE stands in the snapshot: the order that breaks ties between SAEs."""
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
        """Which features each row group of a neighbour table holds."""
        found = self._graphs.get(path)
        if found is None:
            found = self._graphs[path] = GroupRanges.of(self.files, path)
        return found

    def directions(self, sae: Sae) -> Directions:
        """The float32 directions of one SAE, read from LanceDB once and kept."""
        found = self._directions.get(sae.name)
        if found is None:
            found = read_directions(self.layout, self._vectors(sae))
            self._directions[sae.name] = found
        return found

    def matrix(self, sae: Sae, kind: str) -> npt.NDArray[np.float16]:
        """Unit directions float16 [d_sae, d], memory-mapped. kind: ``decoder`` or ``encoder``."""
        file: File = getattr(self._vectors(sae), kind)
        return load_array(self.root, file.path)

    def _vectors(self, sae: Sae) -> Vectors:
        return next(v for v in self.snapshot.vectors if v.sae == sae.name)

    def connection(self) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB with the views and macros of this snapshot, made on first use.

        Every call gives the same connection; `.cursor()` of it is one more for another thread.
        """
        from featuredb.catalog.connect import connect

        with self._lock:
            if self._connection is None:
                self._connection = connect(self.snapshot, self.root)
            return self._connection

    def close(self) -> None:
        """Close every file and connection. A closed store opens them again when asked."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        self.files.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.root, self.snapshot.number)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, snapshot {self.snapshot.number})"


def _reopen(root: Path, number: int) -> Store:
    return Store.open(root, number)
