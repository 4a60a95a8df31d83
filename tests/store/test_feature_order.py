"""The order of an SAE's features: by frequency, stored in a file, and unchanged when read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featuredb.store.feature_order import by_frequency, read_feature_order, write_feature_order
from featuredb.store.files.atomic import sha256_of
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout


def test_the_most_frequent_come_first_and_ties_go_by_id() -> None:
    assert by_frequency(np.array([3, 0, 7, 3, 0])).tolist() == [2, 0, 3, 1, 4]


def test_it_reads_as_it_was_written(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 9, 300)
    entry = write_feature_order(Layout(tmp_path), "sae", 7, counts)
    assert entry.path == "orders/sae.000007.parquet"
    assert entry.rows == 300
    assert entry.bytes == (tmp_path / entry.path).stat().st_size
    assert entry.sha256 == sha256_of(tmp_path / entry.path)
    order = read_feature_order(ParquetFiles(tmp_path), entry.path)
    assert order.path == entry.path
    assert order.features.tolist() == by_frequency(counts).tolist()
    assert order.features[order.ranks].tolist() == list(range(300))
