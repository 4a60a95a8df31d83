"""The by-feature copy: rows round-trip with any stride."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featuredb.store.by_feature import (
    FeatureRows,
    SegmentByFeature,
    directory_of,
    write_feature_file,
)
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.positions import stride_of
from featuredb.store.snapshot import FeatureFile, File, Segment
from featuredb.store.values import Values, stored_values

NONE = File("", 0, 0, "")


def made_rows(counts: list[int], span: int, seed: int) -> FeatureRows:
    rng = np.random.default_rng(seed)
    positions = [np.sort(rng.choice(span, n, replace=False)) for n in counts]
    return FeatureRows(
        np.repeat(np.arange(len(counts), dtype=np.uint32), counts),
        np.concatenate([*positions, []]).astype(np.uint32),
        rng.normal(size=sum(counts)).astype(np.float16),
    )


def stored(
    root: Path, rows: FeatureRows, counts: list[int], strides: list[int]
) -> SegmentByFeature:
    """The rows in a file per stride, each with as many features."""
    directory = directory_of(np.array(counts))
    np.save(root / "directory.npy", directory)
    edges = np.linspace(0, len(counts), len(strides) + 1).astype(int)
    files = []
    for i, stride in enumerate(strides):
        low, high = (int(directory[edge]) for edge in edges[i : i + 2])
        own = FeatureRows(
            rows.feature_id[low:high], rows.position[low:high], rows.activation[low:high]
        )
        write_feature_file(root / f"b{i}.parquet", own, "float16", stride)
        entry = File(f"b{i}.parquet", high - low, 0, "")
        files.append(FeatureFile(entry, int(edges[i]), int(edges[i + 1]), low, stride))
    entry = File("directory.npy", 0, 0, "")
    segment = Segment(
        "s", "sae", 1, 0, 1, len(rows.position), "float16", 0, tuple(files), (), entry, NONE
    )
    return SegmentByFeature(root, segment, ParquetFiles(root))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.lists(st.sampled_from([0, 1, 50, 1 << 31, (1 << 32) - 1]), min_size=1, max_size=3),
    st.integers(0, 5),
    st.data(),
)
def test_rows_come_back_as_they_were(
    counts: list[int], strides: list[int], seed: int, data: st.DataObject
) -> None:
    rows = made_rows(counts, 50, seed)
    n = len(rows.position)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    with tempfile.TemporaryDirectory() as folder:
        reader = stored(Path(folder), rows, counts, strides)
        for with_features in (True, False):
            got = reader.rows(start, stop, with_features=with_features)
            assert np.array_equal(got.position, rows.position[start:stop])
            assert np.array_equal(got.activation, rows.activation[start:stop])
            if with_features:
                assert np.array_equal(got.feature_id, rows.feature_id[start:stop])
        for feature in range(len(counts)):
            own = rows.feature_id == feature
            position, activation = reader.feature(feature)
            assert np.array_equal(position, rows.position[own])
            assert np.array_equal(activation, rows.activation[own])


def test_a_stride_keeps_the_column_rising_and_small(tmp_path: Path) -> None:
    rows = made_rows([600] * 300, 200 << 8, 0)
    sizes = []
    for stride in (0, stride_of(200, 8)):
        path = tmp_path / "fm.parquet"
        write_feature_file(path, rows, "float16", stride)
        sizes.append(pq.read_metadata(path).row_group(0).column(1).total_compressed_size)
    position = pq.read_table(path)["position"].to_numpy()
    assert (np.diff(position) > 0).all()
    assert sizes[1] < 0.95 * sizes[0]


def test_the_stride_of_a_full_segment_is_none() -> None:
    assert stride_of(1 << 24, 8) == 0
    assert stride_of(3, 8) == 768


@pytest.mark.parametrize(
    ("values", "encoding"),
    [("float16", "PLAIN"), ("float32", "BYTE_STREAM_SPLIT"), ("log8", "RLE_DICTIONARY")],
)
def test_encodings(tmp_path: Path, values: Values, encoding: str) -> None:
    rng = np.random.default_rng(0)
    activation = stored_values(rng.normal(size=6_000).astype(np.float32), values)
    rows = made_rows([300] * 20, 1_000, 0)._replace(activation=activation)
    path = tmp_path / "fm.parquet"
    write_feature_file(path, rows, activation.dtype.name, 1_000)
    group = pq.read_metadata(path).row_group(0)
    assert encoding in group.column(2).encodings
    assert (encoding == "RLE_DICTIONARY") == ("RLE_DICTIONARY" in group.column(2).encodings)
    assert np.array_equal(pq.read_table(path)["activation"].to_numpy(), activation)
