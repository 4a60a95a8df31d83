"""An SAE's features by how often they fire: the order that the by-token copy uses.

Frequent features come first, so that a token's features, as steps along the order, are mostly
small numbers. The order is fixed once per SAE, before its first run, from the load check's
sample, and never changes: merging segments leaves by-token files as they are.
"""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.files.atomic import sha256_of, write_atomically
from featuredb.store.files.parquet import ParquetFiles, chunk_to_numpy
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File


class FeatureOrder:
    """One SAE's order. path: its file, relative. features: uint32 [d_sae], the id at each rank."""

    def __init__(self, path: str, features: npt.NDArray[np.uint32]) -> None:
        self.path = path
        self.features = features

    @cached_property
    def ranks(self) -> npt.NDArray[np.uint32]:
        """The rank of each feature, uint32 [d_sae]."""
        ranks = np.empty(len(self.features), np.uint32)
        ranks[self.features] = np.arange(len(self.features), dtype=np.uint32)
        return ranks


def by_frequency(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint32]:
    """Feature ids uint32 [d_sae] by `counts` [d_sae] descending, ties by id."""
    return np.argsort(-counts.astype(np.int64), kind="stable").astype(np.uint32)


def write_feature_order(
    layout: Layout, table: str, number: int, counts: npt.NDArray[np.integer[Any]]
) -> File:
    """Store the order of one SAE. counts: [d_sae], how often each feature fired in a sample.

    table: the name of the SAE's LanceDB table. number: of the first snapshot that uses it, which
    distinguishes the file from that of an earlier SAE with the same name. Raises `StorageError`.
    """
    features = by_frequency(counts)
    ranks = np.arange(len(features), dtype=np.uint32)
    held = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(ranks), pa.array(features)], schema=schemas.FEATURE_ORDER),
        held,
        compression="zstd",
        data_page_version="2.0",
    )
    path = layout.feature_order(table, number)
    write_atomically(path, held.getvalue())
    return File(layout.relative(path), len(features), path.stat().st_size, sha256_of(path))


def read_feature_order(files: ParquetFiles, path: str) -> FeatureOrder:
    """The order in the file at `path`. Raises `CorruptDatabaseError`."""
    return FeatureOrder(path, chunk_to_numpy(files.read(path).column("feature_id")))
