"""LanceDB's directions against the matrices made from them, a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from featuredb.store.snapshot import PlainRows, Sae, Vectors
from featuredb.store.vectors.directions import Directions, Float32Matrix, matrix_of, unit_rows
from featuredb.verification.remedies import RESTORE
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope, first_line

_COPIES = 80
"""Bytes held per float32 asked for: the float64 rows, their squares and unit rows, and what Lance
reads beyond them. With 100 MB to work in, 120 MB were measured."""


def check_directions(scope: Scope, sae: Sae, vectors: Vectors) -> Iterator[Problem]:
    """Every row of one SAE's table, rounded, is the matrices' row, and lies where it is said to."""
    where = f"vectors.lance/{vectors.table}.lance"
    kept = {
        name: np.load(scope.layout.root / getattr(vectors, name).path, mmap_mode="r")
        for name in Directions._fields
    }
    block = max(256, scope.memory // (_COPIES * max(sae.d_in, sae.d_out)))
    try:
        table = _open(scope, vectors)
        n = table.count_rows()
        if n != sae.d_sae:
            yield Problem(where, f"has {n:,} rows, should have {sae.d_sae:,}", RESTORE)
            return
        for start in range(0, sae.d_sae, block):
            stop = min(sae.d_sae, start + block)
            for name, matrix in kept.items():
                rows = matrix_of(_rows(table, name, start, stop), name)
                if not np.array_equal(unit_rows(rows).astype(np.float16), matrix[start:stop]):
                    said = f"its {name} directions are not those of {getattr(vectors, name).path}"
                    yield Problem(where, said, RESTORE)
                    return
                if not _lie(scope, vectors.plain, name, start, rows):
                    said = f"its {name} directions are not where the snapshot says"
                    yield Problem(where, said, RESTORE)
                    return
    except Exception as error:  # LanceDB raises whatever its Rust half says
        yield Problem(where, f"cannot be read ({first_line(error)})", RESTORE)


def _open(scope: Scope, vectors: Vectors) -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # its remarks go to standard error
    import lancedb

    table = lancedb.connect(scope.layout.vectors).open_table(vectors.table)
    table.checkout(vectors.version)
    return table


def _rows(table: Any, name: str, start: int, stop: int) -> pa.Table:
    """Features start <= id < stop, in order. Ranges, since a stream of batches reads far ahead."""
    query = table.search().where(f"feature_id >= {start} AND feature_id < {stop}")
    found: pa.Table = query.select(["feature_id", name]).limit(stop - start).to_arrow()
    return found.sort_by("feature_id").combine_chunks()


def _lie(scope: Scope, plain: PlainRows | None, name: str, start: int, rows: Float32Matrix) -> bool:
    """Whether `rows` are what lies in the file from row `start` on, if any are said to."""
    offset = getattr(plain, name, None)
    if plain is None or offset is None:
        return True
    # Read, not mapped: what is mapped would count as memory.
    first = offset + start * rows[0].nbytes
    found = np.fromfile(scope.layout.root / plain.path, np.float32, rows.size, offset=first)
    return found.tobytes() == rows.tobytes()
