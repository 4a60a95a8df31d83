"""Decoder and encoder directions: kept in LanceDB, searched exactly through a float16 matrix.

Scoring rule, the same when the neighbour graph is built and when a question is asked: candidates
come from FAISS over the unit-normalised float16 rows; each is then rescored as the float64 dot
product of the float32 directions divided by their float64 norms, rounded to seven decimals, so
that equal directions tie whatever order the machine sums in, and kept as float32. Order: score
descending, ties by (SAE in the snapshot's order, feature id).
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.files import folder_in_place, remove_tree, sha256_of
from featuredb.layout import Layout
from featuredb.snapshot import File, Vectors

Float32Matrix = npt.NDArray[np.float32]

_DECIMALS = 7

_SLACK = 32
"""Candidates fetched beyond the number asked for: float16 may swap near-ties, rescoring restores
them as long as they are among the candidates."""


class Directions(NamedTuple):
    """Rows of one SAE, float32 [d_sae, d]."""

    decoder: Float32Matrix
    encoder: Float32Matrix


def write_vectors(layout: Layout, sae: str, directions: Directions) -> Vectors:
    """Store the directions of one SAE: a LanceDB table and two float16 matrices.

    A table left by an interrupted ingest is overwritten; no snapshot named it yet.
    """
    table_name = table_of(sae)
    layout.vectors.mkdir(parents=True, exist_ok=True)
    table = _connect(layout).create_table(table_name, _lance_table(directions), mode="overwrite")
    final = layout.matrices / table_name
    remove_tree(final)
    entries = []
    with folder_in_place(final) as folder:
        for name, matrix in zip(Directions._fields, directions, strict=True):
            path = folder / f"{name}.npy"
            np.save(path, unit_rows(matrix).astype(np.float16))
            size, digest = path.stat().st_size, sha256_of(path)
            relative = layout.relative(final / path.name)
            entries.append(File(relative, len(matrix), size, digest))
    return Vectors(sae, table_name, int(table.version), entries[0], entries[1])


def table_of(sae: str) -> str:
    """LanceDB table, and folder, of an SAE: its name, if that is plain, short and no dot file's.

    Any other is made so and ends in the first 16 hexadecimal digits of its own SHA-256, so that
    two names never share a table.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", sae).lstrip(".")[:80]
    return sae if plain == sae else f"{plain}.{sha256(sae.encode()).hexdigest()[:16]}".lstrip(".")


def read_directions(layout: Layout, vectors: Vectors) -> Directions:
    """The float32 directions of one SAE, from LanceDB at the snapshot's version."""
    table = _connect(layout).open_table(vectors.table)
    table.checkout(vectors.version)
    arrow = table.to_arrow().sort_by("feature_id")
    return Directions(*(_matrix(arrow, name) for name in Directions._fields))


def unit_rows(matrix: Float32Matrix) -> npt.NDArray[np.float64]:
    """Rows divided by their float64 norm; a zero row stays zero."""
    wide = matrix.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norms == 0, 1.0, norms))


def cosine_top(
    queries: npt.NDArray[np.float64],
    half: npt.NDArray[np.float16],
    rows: Float32Matrix,
    k: int,
) -> tuple[npt.NDArray[np.int64], Float32Matrix]:
    """The k rows of highest cosine to each query.

    queries: unit rows float64 [q, d]. half: unit rows float16 [n, d]. rows: the same rows as
    float32, not normalised, [n, d]. Returns (row index int64, score float32), both
    [q, min(k, n)], score descending, ties by row index.
    """
    import faiss

    n = len(rows)
    wanted = min(n, k + _SLACK)
    index = faiss.IndexScalarQuantizer(
        half.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.add(np.ascontiguousarray(half, dtype=np.float32))
    _, candidates = index.search(queries.astype(np.float32), wanted)
    found = np.empty((len(queries), min(k, n)), np.int64)
    scores = np.empty(found.shape, np.float32)
    for i, ids in enumerate(candidates):
        exact = np.round(unit_rows(rows[ids]) @ queries[i], _DECIMALS).astype(np.float32)
        order = np.lexsort((ids, -exact))[: found.shape[1]]
        found[i], scores[i] = ids[order], exact[order]
    return found, scores


def _connect(layout: Layout) -> Any:
    """LanceDB on the store's folder, without its remarks on standard error."""
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    return lancedb.connect(layout.vectors)


def _lance_table(directions: Directions) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "feature_id": pa.array(np.arange(len(directions.decoder)), pa.int64()),
        "decoder_norm": pa.array(np.linalg.norm(directions.decoder, axis=1), pa.float32()),
    }
    for name, matrix in zip(Directions._fields, directions, strict=True):
        flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    return pa.table(columns)


def _matrix(table: pa.Table, name: str) -> Float32Matrix:
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    matrix: Float32Matrix = column.flatten().to_numpy().reshape(len(column), -1)
    return matrix
