"""Decoder and encoder directions, stored in LanceDB.

LanceDB has the rows that scores are computed from, exact, in float16 where that holds every number.
It stores such a column uncompressed. If its pages are contiguous, row i is at a fixed
number of bytes after the first. That place is found when the table is written, with every byte
compared. A few rows are then read from a memory map: through LanceDB twenty take 1.3 to 1.8 ms.

`featuredb.store.vectors.exact` scans unit rows in float16. They are written to ``matrices/`` if
there are many, otherwise computed on first use.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import CorruptDatabaseError, first_line
from featuredb.store.files.atomic import (
    folder_in_place,
    fsync_path,
    fsync_tree,
    remove_tree,
    sha256_of,
)
from featuredb.store.files.location import load_array
from featuredb.store.layout import Layout
from featuredb.store.snapshot import DirectionColumn, File, Sae, Vectors

Float32Matrix = npt.NDArray[np.float32]
HalfMatrix = npt.NDArray[np.float16]

UNIT_ROWS_BEYOND = 1 << 23
"""Numbers in a matrix above which its unit rows are stored: computing as many takes 0.1 s."""

_BLOCK = 4_096
"""Rows compared, normalized or read at a time."""


class Directions(NamedTuple):
    """Rows of one SAE, float32 [d_sae, d]."""

    decoder: Float32Matrix
    encoder: Float32Matrix


class RowSlices(Protocol):
    """Directions float32 [n, d] that are read a slice at a time: an array, or `DirectionRows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Float32Matrix: ...


def write_vectors(
    layout: Layout, sae: str, directions: Directions, table: str | None = None
) -> Vectors:
    """Store the directions of one SAE: a LanceDB table and, of a large one, unit rows.

    Args:
        layout: of the database.
        sae: name of the SAE.
        directions: its rows.
        table: name of the table and of the folder. `table_of` the SAE by default. A table of that
            name left by an interrupted ingest is replaced. No other table changes.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    table = table or table_of(sae)
    layout.vectors.mkdir(parents=True, exist_ok=True)
    remove_tree(_lance_folder(layout, table))
    remove_tree(layout.matrices / table)
    narrow = [_narrowed(matrix) for matrix in directions]
    written = _connect(layout).create_table(table, _lance_table(directions, narrow))
    fsync_tree(_lance_folder(layout, table))
    fsync_path(layout.vectors)
    files = _lance_files(layout, table)
    data, offsets = _plain_rows(layout, files, narrow)
    units = _write_unit_rows(layout, table, directions)
    decoder, encoder = (
        DirectionColumn(*_shape(matrix), _value_name(matrix), offset, units.get(kind))
        for kind, matrix, offset in zip(Directions._fields, narrow, offsets, strict=True)
    )
    return Vectors(sae, table, int(written.version), decoder, encoder, files, data)


def table_of(sae: str) -> str:
    """LanceDB table, and folder, of an SAE: its name, if that is plain, short and without a leading
    dot. Any other name is cleaned and ends in the first 16 hexadecimal digits of its SHA-256, so
    two names never share a table.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", sae).lstrip(".")[:80]
    return sae if plain == sae else f"{plain}.{sha256(sae.encode()).hexdigest()[:16]}".lstrip(".")


def fresh_table(sae: str, number: int) -> str:
    """The name of the table of an SAE added in snapshot `number`.

    In the first snapshot `table_of` its name, in a later one of ``name/number``, which no SAE can
    be named. So a table name is never reused, even after the SAE was vacuumed here: copies
    elsewhere rely on names.
    """
    return table_of(sae) if number == 1 else table_of(f"{sae}/{number}")


def comparable(saes: Iterable[Sae], sae: Sae, kind: str) -> list[Sae]:
    """The SAEs with directions comparable with those of `sae`, including itself, in order.

    They read the same hook, write the same hook, and their directions have the same length.
    kind: ``decoder`` or ``encoder``.
    """
    key = (sae.places, length(sae, kind))
    return [s for s in saes if (s.places, length(s, kind)) == key]


def length(sae: Sae, kind: str) -> int:
    """Numbers in one direction. kind: ``decoder`` or ``encoder``."""
    return sae.d_out if kind == "decoder" else sae.d_in


class DirectionRows:
    """The float32 directions of some SAEs, one SAE after another, read from LanceDB on demand.

    A row counts through the SAEs in their order. Nothing is kept in memory. Single rows are read
    from LanceDB's file if the snapshot gives their offset. Every read raises `CorruptDatabaseError`
    where the table is damaged.
    """

    def __init__(self, layout: Layout, vectors: Sequence[Vectors], kind: str) -> None:
        self._layout = layout
        self._kind = kind
        self._vectors = tuple(vectors)
        self._tables: dict[int, Any] = {}
        self._mapped: dict[int, npt.NDArray[np.floating]] = {}
        self._firsts = np.cumsum([0] + [v.column(kind).rows for v in vectors])
        self.shape = (int(self._firsts[-1]), vectors[0].column(kind).width)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: npt.NDArray[np.int64]) -> Float32Matrix:
        """Rows float32 [n, d], in the requested order. A row may be requested twice."""
        wanted, where = np.unique(rows, return_inverse=True)
        result = np.empty((len(wanted), self.shape[1]), np.float32)
        edges = np.searchsorted(wanted, self._firsts)
        for number, (low, high) in enumerate(pairwise(edges.tolist())):
            if low < high:
                local = wanted[low:high] - self._firsts[number]
                mapped = self._map(number)
                if mapped is not None:
                    result[low:high] = mapped[local]
                    continue
                question = self._table(number).take_offsets(local.tolist())
                self._read(number, question, local, result[low:high])
        return result[where]

    def __getitem__(self, rows: slice) -> Float32Matrix:
        """Consecutive rows float32 [n, d]."""
        start, stop, _ = rows.indices(len(self))
        result = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        for number, (first, end) in enumerate(pairwise(self._firsts.tolist())):
            # In pieces, since LanceDB holds what it reads more than once.
            for low in range(max(start, first), min(stop, end), _BLOCK):
                local = np.arange(low, min(stop, end, low + _BLOCK)) - first
                question = self._table(number).search().offset(int(local[0])).limit(len(local))
                into = result[low - start : low - start + len(local)]
                self._read(number, question, local, into)
        return result

    def _read(
        self, number: int, question: Any, features: npt.NDArray[np.int64], into: Float32Matrix
    ) -> None:
        """Read the rows of `features` through LanceDB into `into`."""
        done = 0
        try:
            table = question.select(["feature_id", self._kind]).to_arrow()
        except Exception as error:  # LanceDB raises any class
            raise self._damaged(number, error) from error
        for batch in table.to_batches():
            rows = slice(done, done + len(batch))
            if not np.array_equal(batch.column("feature_id").to_numpy(), features[rows]):
                break
            into[rows] = _numbers(batch.column(self._kind))
            done += len(batch)
        if done < len(features):
            reason = ValueError("it does not hold the features in their order")
            raise self._damaged(number, reason)

    def _table(self, number: int) -> Any:
        """LanceDB's table of one SAE, opened on first use."""
        if number not in self._tables:
            try:
                table = _connect(self._layout).open_table(self._vectors[number].table)
                table.checkout(self._vectors[number].version)
            except Exception as error:  # LanceDB raises any class
                raise self._damaged(number, error) from error
            self._tables[number] = table
        return self._tables[number]

    def _map(self, number: int) -> npt.NDArray[np.floating] | None:
        """The rows of one SAE in LanceDB's file, if uncompressed."""
        vectors = self._vectors[number]
        column = vectors.column(self._kind)
        if vectors.data is None or column.offset is None:
            return None
        if number not in self._mapped:
            try:
                self._mapped[number] = map_rows(self._layout.root / vectors.data, column)
            except (OSError, ValueError) as error:
                raise self._damaged(number, error) from error
        return self._mapped[number]

    def _damaged(self, number: int, error: Exception) -> CorruptDatabaseError:
        folder = _lance_folder(self._layout, self._vectors[number].table)
        return CorruptDatabaseError(
            f"{folder} is missing or damaged ({first_line(error)}): "
            "run `featuredb verify` to see what else is, and restore it from a copy"
        )


def read_directions(layout: Layout, vectors: Vectors) -> Directions:
    """The float32 directions of one SAE, from LanceDB at the snapshot's version."""
    table = _connect(layout).open_table(vectors.table)
    table.checkout(vectors.version)
    arrow = table.to_arrow().sort_by("feature_id")
    return Directions(*(matrix_of(arrow, name) for name in Directions._fields))


def unit_rows(matrix: Float32Matrix) -> npt.NDArray[np.float64]:
    """Rows divided by their float64 norm. A zero row stays zero."""
    wide = matrix.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norms == 0, 1.0, norms))


def half_rows(rows: RowSlices) -> HalfMatrix:
    """Unit rows rounded to float16, which are scanned."""
    half = np.empty(rows.shape, np.float16)
    for start in range(0, len(half), _BLOCK):
        half[start : start + _BLOCK] = unit_rows(rows[start : start + _BLOCK])
    return half


def scanned_rows(root: Path, vectors: Vectors, kind: str) -> HalfMatrix:
    """Unit rows of one SAE in a local folder: memory-mapped where they are stored."""
    unit = vectors.column(kind).unit
    if unit is None:
        rows = DirectionRows(Layout(root), [vectors], kind)
        return half_rows(rows.take(np.arange(len(rows))))
    return load_array(root, unit.path)


def find_rows(path: Path, matrix: npt.NDArray[np.floating]) -> int | None:
    """Byte offset in the file of the rows of `matrix` [n, d], or None."""
    nonzero = np.flatnonzero(matrix[:_BLOCK].any(axis=1))
    if len(nonzero) == 0 or path.stat().st_size < matrix.nbytes:
        return None
    # A row of zeros would be found everywhere.
    row = np.ascontiguousarray(matrix[nonzero[0]]).tobytes()
    before = int(nonzero[0]) * len(row)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        last = len(held) - matrix.nbytes + before + len(row)
        at = held.find(row, before, last)
        while at >= 0:
            if at % matrix.itemsize == 0 and _same(path, at - before, matrix):
                return at - before
            at = held.find(row, at + 1, last)
    return None


def map_rows(path: Path, column: DirectionColumn) -> npt.NDArray[np.floating]:
    """Rows [rows, width] of LanceDB's file, read as they are used. The column has an offset.

    Raises:
        OSError: the file does not exist.
        ValueError: it is too short.
    """
    offset = column.offset or 0
    return np.memmap(path, column.values, "r", offset, (column.rows, column.width))


def _same(path: Path, offset: int, matrix: npt.NDArray[np.floating]) -> bool:
    column = DirectionColumn(*_shape(matrix), _value_name(matrix), offset)
    rows = map_rows(path, column)
    return all(
        rows[i : i + _BLOCK].tobytes() == np.ascontiguousarray(matrix[i : i + _BLOCK]).tobytes()
        for i in range(0, len(matrix), _BLOCK)
    )


def _narrowed(matrix: Float32Matrix) -> npt.NDArray[np.floating]:
    """The matrix in float16 if that holds every number exactly, otherwise in float32."""
    half = np.empty(matrix.shape, np.float16)
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        with np.errstate(over="ignore"):
            half[start : start + _BLOCK] = rows
        if not np.array_equal(half[start : start + _BLOCK].astype(np.float32), rows):
            return matrix
    return half


def _shape(matrix: npt.NDArray[np.floating]) -> tuple[int, int]:
    rows, width = matrix.shape
    return rows, width


def _value_name(matrix: npt.NDArray[np.floating]) -> Literal["float16", "float32"]:
    return "float16" if matrix.dtype == np.float16 else "float32"


def _write_unit_rows(layout: Layout, table: str, directions: Directions) -> dict[str, File]:
    """Store the unit rows of the matrices with many numbers, by kind."""
    large = {k: m for k, m in directions._asdict().items() if m.size > UNIT_ROWS_BEYOND}
    if not large:
        return {}
    units = {}
    final = layout.matrices / table
    with folder_in_place(final) as folder:
        for kind, matrix in large.items():
            path = folder / f"{kind}.npy"
            np.save(path, half_rows(matrix))
            relative = layout.relative(final / path.name)
            units[kind] = File(relative, len(matrix), path.stat().st_size, sha256_of(path))
    return units


def _connect(layout: Layout) -> Any:
    """LanceDB on the database's folder, without its messages on standard error."""
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    return lancedb.connect(layout.vectors)


def _lance_folder(layout: Layout, table: str) -> Path:
    return layout.vectors / f"{table}.lance"


def _lance_files(layout: Layout, table: str) -> tuple[File, ...]:
    """The files that LanceDB wrote for a table, by path."""
    paths = sorted(p for p in _lance_folder(layout, table).rglob("*") if p.is_file())
    return tuple(File(layout.relative(p), 0, p.stat().st_size, sha256_of(p)) for p in paths)


def _plain_rows(
    layout: Layout, files: Sequence[File], matrices: Sequence[npt.NDArray[np.floating]]
) -> tuple[str | None, list[int | None]]:
    """(the file with uncompressed rows, the offset of each matrix), None for what does not
    exist."""
    for file in files:
        offsets = [find_rows(layout.root / file.path, matrix) for matrix in matrices]
        if offsets != [None, None]:
            return file.path, offsets
    return None, [None, None]


def _lance_table(directions: Directions, matrices: Sequence[npt.NDArray[np.floating]]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "feature_id": pa.array(np.arange(len(directions.decoder)), pa.int64()),
        "decoder_norm": pa.array(np.linalg.norm(directions.decoder, axis=1), pa.float32()),
    }
    for name, matrix in zip(Directions._fields, matrices, strict=True):
        flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    return pa.table(columns)


def matrix_of(table: pa.Table, name: str) -> Float32Matrix:
    """A column of directions as float32 [rows, d]."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return _numbers(column)


def _numbers(column: pa.FixedSizeListArray) -> Float32Matrix:
    rows: Float32Matrix = column.flatten().to_numpy().astype(np.float32, copy=False)
    return rows.reshape(len(column), -1)
