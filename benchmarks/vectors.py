"""Directions at scale: the graph of all pairs, nearest to a feature or a vector, and the index.

Run ``python -m benchmarks.vectors --features 131072 --dims 768``. Directions are made up, in
clusters, since independent ones would have no meaningful neighbors. The graph is made in a
separate process. Its peak memory is compared with its memory at the start.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import featuredb
from featuredb.store import schemas
from featuredb.store.files.atomic import write_atomically
from featuredb.store.history import write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import (
    WRITER,
    Derived,
    File,
    LoadCheck,
    Model,
    Recording,
    Sae,
    Snapshot,
    VectorIndex,
    Vectors,
)
from featuredb.store.vectors.directions import (
    DirectionRows,
    Directions,
    Float32Matrix,
    scanned_rows,
    write_vectors,
)
from ingest.derive.index import write_indexes
from ingest.derive.neighbors import iter_neighbors
from ingest.derive.tables import FEATURES_ROW_GROUP, NEIGHBORS_ROW_GROUP, write_parquet

SAE = "made"
_SPREAD = 0.8
"""Length of a direction's difference from its cluster's, over the cluster's."""

_PER_CLUSTER = 64
_ASKED = 40
_ENCODER_DIMS = 8
"""Only decoder directions are measured."""


def made_up(features: int, dims: int, seed: int = 0) -> Float32Matrix:
    """Directions float32 [features, dims], some of each cluster, not normalized."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(1, features // _PER_CLUSTER), dims), dtype=np.float32)
    rows = np.empty((features, dims), np.float32)
    for start in range(0, features, 8_192):
        block = rows[start : start + 8_192]
        own = rng.standard_normal(block.shape, dtype=np.float32)
        block[:] = centers[rng.integers(0, len(centers), len(block))] + _SPREAD * own
    return rows


def stored(folder: Path, features: int, dims: int) -> tuple[Sae, Vectors]:
    """One made-up SAE in LanceDB and ``matrices/``."""
    directions = Directions(made_up(features, dims), made_up(features, _ENCODER_DIMS))
    vectors = write_vectors(Layout(folder), SAE, directions)
    check = LoadCheck(0, 0.0, 1.0, 0.0, 1.0, None)
    sae = Sae(
        SAE, SAE, SAE, "relu", "0", "blocks.0.hook_resid_post", None,
        _ENCODER_DIMS, dims, features, "float32", check,
    )  # fmt: skip
    return sae, vectors


def graph(folder: Path, sae: Sae, vectors: Vectors, memory: int) -> tuple[float, int, int]:
    """Write the graph as one Parquet file: seconds, and peak bytes before it and with it."""
    rows = {sae.name: DirectionRows(Layout(folder), [vectors], "decoder")}
    rows[sae.name].take(np.array([0]))  # LanceDB and FAISS are loaded now
    import faiss  # noqa: F401

    before = _peak()
    began = time.perf_counter()
    with pq.ParquetWriter(
        folder / "neighbors.decoder.parquet",
        schemas.NEIGHBORS,
        compression="zstd",
        data_page_version="2.0",
    ) as writer:
        for table in iter_neighbors([sae], rows, memory=memory):
            writer.write_table(table, row_group_size=NEIGHBORS_ROW_GROUP)
    return time.perf_counter() - began, before, _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def publish(folder: Path, sae: Sae, vectors: Vectors, indexes: tuple[VectorIndex, ...]) -> None:
    """A database with only directions: no corpus, no activations."""
    n = sae.d_sae
    token = [{"token": f"token {i}", "count": i, "mean_activation": 1.0} for i in range(20)]
    logit = [{"token": f"token {i}", "logit": 1.0} for i in range(20)]
    given: dict[str, list[object]] = {
        "sae": [sae.name] * n,
        "feature_id": list(range(n)),
        "quantiles": [[]] * n,
        "histogram": [[]] * n,
        "top_tokens": [token] * n,
        "promoted_tokens": [logit] * n,
        "suppressed_tokens": [logit] * n,
    }
    columns = [pa.array(given.get(f.name, [1] * n), f.type) for f in schemas.FEATURES]
    features = pa.table(columns, schema=schemas.FEATURES)
    write_parquet(features, folder / "features.parquet", FEATURES_ROW_GROUP)
    write_parquet(
        schemas.NEIGHBORS.empty_table(), folder / "coactivation.parquet", NEIGHBORS_ROW_GROUP
    )
    write_atomically(folder / "vocabulary.parquet", b"")
    together = _file(folder, "coactivation.parquet")
    near = _file(folder, "neighbors.decoder.parquet")
    snapshot = Snapshot(
        format=schemas.FORMAT_VERSION,
        featuredb=WRITER,
        number=1,
        created="",
        position_bits=8,
        model=Model(SAE, SAE, None, "0", "0", SAE, "float32", sae.d_out, 1, 1),
        recording=Recording(False, False, "float16"),
        vocabulary=_file(folder, "vocabulary.parquet"),
        corpora=(),
        saes=(sae,),
        segments=(),
        vectors=(vectors,),
        derived=Derived(_file(folder, "features.parquet"), near, together, together, (), indexes),
        ingests=(),
    )
    write_snapshot(Layout(folder), snapshot)


def _file(folder: Path, name: str) -> File:
    return File(name, 0, (folder / name).stat().st_size, "")


def read_ms(matrix: np.ndarray, threads: int) -> float:
    """Milliseconds to read all of a matrix: the sum of its bytes as 64-bit integers."""
    flat = matrix.reshape(-1).view(np.uint64)
    with ThreadPoolExecutor(threads) as pool:
        parts = np.array_split(flat, threads)
        return median_ms(lambda: list(pool.map(np.sum, parts)), 15)


def median_ms(question: Callable[[], object], times: int) -> float:
    """Of calls that follow one that is not counted."""
    question()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        question()
        taken.append(1_000 * (time.perf_counter() - began))
    return statistics.median(taken)


def asked_ms(question: Callable[[int], object], features: int) -> float:
    """Median over features spread over all, each asked once before, so that files are warm."""
    chosen = [i * features // _ASKED for i in range(_ASKED)]
    for feature in chosen:
        question(feature)
    return statistics.median(median_ms(partial(question, f), 1) for f in chosen)


@click.command()
@click.option("--features", default=131_072, help="Features of the made-up SAE.")
@click.option("--dims", default=768, help="Numbers in a direction.")
@click.option("--memory", default=1 << 30, help="Bytes the graph, and the index, are made in.")
@click.option("--no-graph", is_flag=True, help="Leave the graph out, and near from a feature.")
@click.option("--index", is_flag=True, help="Make the approximate index too, whatever the size.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where; temporary by default.")
def main(
    features: int, dims: int, memory: int, no_graph: bool, index: bool, folder: Path | None
) -> None:
    """Print how long directions take to compare, and in how much memory."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        Console().print(measured(Path(made), features, dims, memory, not no_graph, index))


def measured(
    folder: Path, features: int, dims: int, memory: int, with_graph: bool, with_index: bool
) -> Table:
    """All figures."""
    table = Table(f"{features:,} x {dims}", "")
    alone = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=alone) as pool:
        sae, vectors = pool.submit(stored, folder, features, dims).result()
    if with_graph:
        with ProcessPoolExecutor(1, mp_context=alone) as pool:
            seconds, before, peak = pool.submit(graph, folder, sae, vectors, memory).result()
        table.add_row("graph, s", f"{seconds:.1f}")
        table.add_row("graph, features/s", f"{features / seconds:,.0f}")
        table.add_row("memory asked for, MB", f"{memory / 1e6:,.0f}")
        used = f"{(peak - before) / 1e6:,.0f} (of {peak / 1e6:,.0f} in all)"
        table.add_row("peak RSS beyond libraries, MB", used)
    else:
        write_parquet(
            schemas.NEIGHBORS.empty_table(),
            folder / "neighbors.decoder.parquet",
            NEIGHBORS_ROW_GROUP,
        )
    indexes: tuple[VectorIndex, ...] = ()
    if with_index:
        began = time.perf_counter()
        indexes = write_indexes(
            Layout(folder), folder, folder, [sae], [vectors], "decoder", print, beyond=0,
            memory=memory,
        )  # fmt: skip
        table.add_row("index, s", f"{time.perf_counter() - began:.1f}")
        size = sum(i.centroids.bytes + i.lists.bytes for i in indexes)
        table.add_row("index, MB", f"{size / 1e6:,.1f}")
        table.add_row("index, recall@10", f"{indexes[0].recall:.3f}")
        table.add_row("index, lists probed", str(indexes[0].probes))
    publish(folder, sae, vectors, indexes)
    db = featuredb.open(folder)
    if with_graph:
        table.add_row(
            "near from a feature, ms", f"{asked_ms(lambda f: db.near(f, k=20), features):.2f}"
        )
    vector = made_up(1, dims, seed=1)[0]
    matrix = scanned_rows(folder, vectors, "decoder")
    one, two = read_ms(matrix, 1), read_ms(matrix, 2)
    exact = median_ms(lambda: db.near_vector(vector, k=20, exact=True), 15)
    table.add_row("one read of the matrix, one thread, ms", f"{one:.2f}")
    table.add_row("one read of the matrix, two threads, ms", f"{two:.2f}")
    table.add_row("near from a vector, exact, ms", f"{exact:.2f}")
    table.add_row("  over a read by one thread, by two", f"{exact / one:.2f}, {exact / two:.2f}")
    if with_index:
        found = median_ms(lambda: db.near_vector(vector, k=20), 15)
        table.add_row("near from a vector, index, ms", f"{found:.2f}")
    return table


if __name__ == "__main__":
    main()
