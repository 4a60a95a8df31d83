"""Baselines: the same activations in common layouts, with the same queries.

- *by-token Parquet*: a row per activation in the order of the text, zstd, scanned by DuckDB.
- *DuckDB table*: a native table of the same rows, sorted by feature, so that its zone maps help.
- *cache in memory*: the layout of Delphi's cache, locations int64 [n, 3] and values float32 [n],
  saved as arrays, loaded whole and masked by feature. At most `CACHED` activations of it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.synthetic import BITS, CONTEXT, World

CACHED = 100_000_000
"""2.8 GB of memory. Ten times as many do not fit the machine."""

_ROW_GROUP = 1 << 20


class Baseline(Protocol):
    """One layout. Answers are numbers of rows, so that they can be compared."""

    name: str
    activations: int
    bytes: int
    load_s: float

    def activations_of(self, feature: int) -> int:
        """All activations of a feature, fetched."""

    def top_contexts(self, feature: int, k: int = 20) -> int:
        """The contexts of highest maximum, ties by id."""

    def fires_in(self, context: int) -> int:
        """All activations of a context, fetched."""

    def together(self, one: int, other: int) -> int:
        """Tokens on which both fire, fetched with both activations."""

    def close(self) -> None:
        """Free its memory."""


def write_token_major(folder: Path, world: World, processes: int) -> None:
    """By-token Parquet files below `folder`, one a partition."""
    folder.mkdir(parents=True)
    firsts = world.first_contexts()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = partial(_write_partition, folder, world)
        list(pool.map(work, range(world.partitions), firsts[:-1].tolist()))


def _write_partition(folder: Path, world: World, number: int, first_context: int) -> None:
    codes = world.codes(number)
    context = (codes.position >> BITS).astype(np.int64) + first_context
    table = pa.table(
        {
            "context_id": pa.array(context),
            "token_index": pa.array((codes.position & (CONTEXT - 1)).astype(np.int32)),
            "feature_id": pa.array(codes.feature_id.astype(np.int32)),
            "activation": pa.array(codes.activation.astype(np.float32)),
        }
    )
    pq.write_table(
        table, folder / f"{number:04d}.parquet", compression="zstd", row_group_size=_ROW_GROUP
    )


class InDuckDB:
    """Rows (context_id, token_index, feature_id, activation) that DuckDB reads."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        """path: a database file, or `:memory:`. source: what is selected from."""
        self.name = name
        self._connection = duckdb.connect(str(path))
        self._connection.execute("SET enable_progress_bar = false")
        self._source = source
        self.activations = 0
        self.bytes = 0
        self.load_s = 0.0

    @classmethod
    def parquet(cls, folder: Path) -> InDuckDB:
        """Over the files of `write_token_major`."""
        made = cls("by-token Parquet", Path(":memory:"), f"read_parquet('{folder}/*.parquet')")
        files = list(folder.glob("*.parquet"))
        made._connection.execute("SET parquet_metadata_cache = true")
        made.activations = sum(pq.read_metadata(f).num_rows for f in files)
        made.bytes = sum(f.stat().st_size for f in files)
        return made

    @classmethod
    def table(cls, path: Path, make: Callable[[Path], None]) -> InDuckDB:
        """A native table, made at `path` by `make` unless it is there."""
        began = time.perf_counter()
        if not path.exists():
            make(path)
        made = cls("DuckDB table", path, "activations")
        made.load_s = time.perf_counter() - began
        counted = made._connection.execute("SELECT count(*) FROM activations").fetchall()
        made.activations = int(counted[0][0])
        made.bytes = path.stat().st_size
        return made

    def activations_of(self, feature: int) -> int:
        return self._rows(
            f"SELECT context_id, token_index, activation FROM {self._source} WHERE feature_id = ?",
            feature,
        )

    def top_contexts(self, feature: int, k: int = 20) -> int:
        return self._rows(
            "SELECT context_id, max(activation) AS peak, arg_max(token_index, activation) "
            f"FROM {self._source} WHERE feature_id = ? GROUP BY context_id "
            f"ORDER BY peak DESC, context_id LIMIT {k}",
            feature,
        )

    def fires_in(self, context: int) -> int:
        return self._rows(
            f"SELECT token_index, feature_id, activation FROM {self._source} WHERE context_id = ?",
            context,
        )

    def together(self, one: int, other: int) -> int:
        side = f"(SELECT * FROM {self._source} WHERE feature_id = ?)"
        return self._rows(
            "SELECT context_id, token_index, a.activation, b.activation "
            f"FROM {side} AS a JOIN {side} AS b USING (context_id, token_index)",
            one,
            other,
        )

    def close(self) -> None:
        self._connection.close()

    def _rows(self, query: str, *values: int) -> int:
        return int(self._connection.sql(query, params=values).to_arrow_table().num_rows)


class InMemory:
    """Locations and values of every activation, in token order, in memory."""

    name = "cache in memory"

    def __init__(self, folder: Path) -> None:
        began = time.perf_counter()
        self._locations: npt.NDArray[np.int64] = np.load(folder / "locations.npy")
        self._values: npt.NDArray[np.float32] = np.load(folder / "activations.npy")
        self.load_s = time.perf_counter() - began
        self.activations = len(self._values)
        self.bytes = self._locations.nbytes + self._values.nbytes

    @staticmethod
    def write(folder: Path, world: World) -> None:
        """The first partitions of `world`, up to `CACHED` activations, as two arrays on the disk.

        A row of locations is (context, token index, feature).
        """
        folder.mkdir(parents=True)
        firsts = world.first_contexts()
        made = []
        total = 0
        for number in range(world.partitions):
            codes = world.codes(number)
            if number and total + len(codes.position) > CACHED * 1.01:
                break
            total += len(codes.position)
            made.append(codes)
        locations = np.empty((total, 3), np.int64)
        values = np.empty(total, np.float32)
        row = 0
        for codes, first in zip(made, firsts.tolist(), strict=False):
            part = slice(row, row + len(codes.position))
            locations[part, 0] = (codes.position >> BITS).astype(np.int64) + first
            locations[part, 1] = codes.position & (CONTEXT - 1)
            locations[part, 2] = codes.feature_id
            values[part] = codes.activation
            row = part.stop
        np.save(folder / "locations.npy", locations)
        np.save(folder / "activations.npy", values)

    def activations_of(self, feature: int) -> int:
        return len(self._of(feature)[1])

    def top_contexts(self, feature: int, k: int = 20) -> int:
        locations, values = self._of(feature)
        if len(values) == 0:
            return 0
        starts = np.flatnonzero(np.concatenate(([True], locations[1:, 0] != locations[:-1, 0])))
        peaks = np.maximum.reduceat(values, starts)
        return len(np.lexsort((locations[starts, 0], -peaks))[:k])

    def fires_in(self, context: int) -> int:
        mask = self._locations[:, 0] == context
        return len(self._locations[mask]) and len(self._values[mask])

    def together(self, one: int, other: int) -> int:
        first, second = ((at[:, 0] << BITS) | at[:, 1] for at, _ in map(self._of, (one, other)))
        return len(np.intersect1d(first, second, assume_unique=True))

    def close(self) -> None:
        del self._locations, self._values

    def _of(self, feature: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        mask = self._locations[:, 2] == feature
        return self._locations[mask], self._values[mask]


def open_all(
    folder: Path,
    world: World,
    processes: int,
    make_table: Callable[[Path], None],
    note: Callable[[str], None],
) -> list[Callable[[], Baseline]]:
    """Each baseline, made below `folder` unless it is there, to be opened one after the other.

    make_table: writes a DuckDB file with the same activations, sorted by feature, as its table
    `activations`.
    """
    if not (folder / "by-token").exists():
        note("writing by-token Parquet")
        write_token_major(folder / "by-token", world, processes)
    if not (folder / "cache").exists():
        note("writing the cache")
        InMemory.write(folder / "cache", world)
    return [
        lambda: InDuckDB.parquet(folder / "by-token"),
        lambda: InDuckDB.table(folder / "sorted.duckdb", make_table),
        lambda: InMemory(folder / "cache"),
    ]
