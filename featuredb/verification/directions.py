"""LanceDB's directions against the unit rows computed from them, a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from featuredb.errors import first_line
from featuredb.store.snapshot import Sae, Vectors
from featuredb.store.vectors.directions import Directions, Float32Matrix, matrix_of, unit_rows
from featuredb.verification.remedies import RESTORE
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope

_COPIES = 80
"""Bytes held per requested float32: the float64 rows, their squares and unit rows, and what Lance
reads beyond them. With 100 MB to work in, 120 MB were measured."""


def check_directions(scope: Scope, sae: Sae, vectors: Vectors) -> Iterator[Problem]:
    """Each row is at the snapshot's offset and rounds to its stored unit row, if any."""
    where = f"vectors.lance/{vectors.table}.lance"
    block = max(256, scope.memory // (_COPIES * max(sae.d_in, sae.d_out)))
    try:
        table = _open(scope, vectors)
        n = table.count_rows()
        if n != sae.d_sae:
            yield Problem(where, f"has {n:,} rows, should have {sae.d_sae:,}", RESTORE)
            return
        for start in range(0, sae.d_sae, block):
            stop = min(sae.d_sae, start + block)
            for name in Directions._fields:
                rows = matrix_of(_rows(table, name, start, stop), name)
                wrong = _wrong_rows(scope, vectors, name, start, rows)
                if wrong is not None:
                    yield Problem(where, f"its {name} directions are not {wrong}", RESTORE)
                    return
    except Exception as error:  # LanceDB raises any class
        yield Problem(where, f"cannot be read ({first_line(error)})", RESTORE)


def _wrong_rows(
    scope: Scope, vectors: Vectors, name: str, start: int, rows: Float32Matrix
) -> str | None:
    """The difference of LanceDB's rows from `start` on, None if there is none."""
    column = vectors.column(name)
    if column.unit is not None:
        unit = np.load(scope.layout.root / column.unit.path, mmap_mode="r")
        if not np.array_equal(unit_rows(rows).astype(np.float16), unit[start : start + len(rows)]):
            return f"those of {column.unit.path}"
    if vectors.data is not None and column.offset is not None:
        # Read, not mapped: mapped pages count as memory.
        kind = np.dtype(column.values)
        first = column.offset + start * column.width * kind.itemsize
        path = scope.layout.root / vectors.data
        plain = np.fromfile(path, kind, rows.size, offset=first).astype(np.float32)
        if plain.tobytes() != rows.tobytes():
            return "where the snapshot says"
    return None


def _open(scope: Scope, vectors: Vectors) -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # its messages go to standard error
    import lancedb

    table = lancedb.connect(scope.layout.vectors).open_table(vectors.table)
    table.checkout(vectors.version)
    return table


def _rows(table: Any, name: str, start: int, stop: int) -> pa.Table:
    """Features start <= id < stop, in order. Ranges, since a stream of batches reads far ahead."""
    query = table.search().where(f"feature_id >= {start} AND feature_id < {stop}")
    stored: pa.Table = query.select(["feature_id", name]).limit(stop - start).to_arrow()
    return stored.sort_by("feature_id").combine_chunks()
