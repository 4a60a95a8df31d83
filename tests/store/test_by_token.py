"""The by-token copy: rows round-trip, ascending, in every encoding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featuredb.errors import CorruptDatabaseError
from featuredb.store import schemas
from featuredb.store.by_token import SegmentByToken, TokenRows, write_token_file
from featuredb.store.feature_order import FeatureOrder, read_feature_order, write_feature_order
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Segment, TokenFile
from featuredb.store.values import Values, stored_values
from tests.gaps import to_gaps

BITS = 4
NONE = File("", 0, 0, "")


def made_rows(lengths: list[int], d_sae: int, values: str, seed: int) -> TokenRows:
    """Tokens with that many features each, at every third position."""
    rng = np.random.default_rng(seed)
    features = [np.sort(rng.choice(d_sae, n, replace=False)) for n in lengths]
    n = sum(lengths)
    return TokenRows(
        np.arange(len(lengths), dtype=np.uint32) * 3,
        np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        np.concatenate([*features, []]).astype(np.uint32),
        rng.normal(size=n).astype(values),
    )


def reader(root: Path, values: str, order: str) -> tuple[SegmentByToken, TokenFile]:
    entry = TokenFile(File("tm.parquet", 0, 0, ""), 0, 1 << 20, 0, order)
    segment = Segment("s", "sae", 0, 0, 1 << 20, 0, values, 0, (), (entry,), NONE, NONE)  # type: ignore[arg-type]
    return SegmentByToken(segment, ParquetFiles(root), BITS), entry


def assert_same(have: TokenRows, want: TokenRows) -> None:
    for name in TokenRows._fields:
        mine, theirs = getattr(have, name), getattr(want, name)
        assert mine.dtype.kind == theirs.dtype.kind
        assert np.array_equal(mine, theirs)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), max_size=12),
    st.sampled_from([60, 65_536, 65_537]),
    st.sampled_from(["float16", "float32"]),
    st.integers(0, 5),
)
def test_tokens_come_back_as_they_were(
    lengths: list[int], d_sae: int, values: str, seed: int
) -> None:
    rows = made_rows(lengths, d_sae, values, seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        counts = np.random.default_rng(seed).integers(0, 4, d_sae)
        path = write_feature_order(Layout(root), "sae", 1, counts).path
        order = read_feature_order(ParquetFiles(root), path)
        write_token_file(root / "tm.parquet", to_gaps(rows, order), values, d_sae)
        tokens, entry = reader(root, values, path)
        assert_same(tokens.file(entry), rows)
        for context in range(4):
            index, own = tokens.context(context)
            mine = rows.position >> BITS == context
            assert (index == (rows.position[mine] & 15)).all()
            assert_same(own, _of(rows, mine))


def _of(rows: TokenRows, tokens: np.ndarray) -> TokenRows:
    lengths = np.diff(rows.offsets)
    entries = np.repeat(tokens, lengths)
    return TokenRows(
        rows.position[tokens],
        np.concatenate(([0], np.cumsum(lengths[tokens]))).astype(np.int64),
        rows.feature_id[entries],
        rows.activation[entries],
    )


def test_the_gaps_on_the_disk(tmp_path: Path) -> None:
    order = FeatureOrder("order", np.array([5, 0, 3, 1, 4, 2], np.uint32))
    rows = TokenRows(
        np.array([1, 9], np.uint32),
        np.array([0, 3, 5]),
        np.array([0, 2, 5, 1, 3]),
        np.array([1, 2, 3, 4, 5], np.float16),
    )
    write_token_file(tmp_path / "tm.parquet", to_gaps(rows, order), "float16", 6)
    table = pq.read_table(tmp_path / "tm.parquet")
    assert table.schema.equals(schemas.by_token("float16", 6))
    assert table["gaps"].to_pylist() == [[0, 1, 4], [2, 1]]
    assert table["activations"].to_pylist() == [[3, 1, 2], [5, 4]]


def test_ranks_beyond_the_order_are_damage(tmp_path: Path) -> None:
    rows = made_rows([3, 3], 40, "float16", 0)
    everything = FeatureOrder("", np.arange(40, dtype=np.uint32))
    write_token_file(tmp_path / "tm.parquet", to_gaps(rows, everything), "float16", 40)
    path = write_feature_order(Layout(tmp_path), "sae", 1, np.zeros(4, int)).path
    tokens, entry = reader(tmp_path, "float16", path)
    with pytest.raises(CorruptDatabaseError, match=r"tm\.parquet lists features that orders/sae"):
        tokens.file(entry)


@pytest.mark.parametrize(
    ("values", "encoding"),
    [("float16", "PLAIN"), ("float32", "BYTE_STREAM_SPLIT"), ("log8", "RLE_DICTIONARY")],
)
def test_encodings(tmp_path: Path, values: Values, encoding: str) -> None:
    rows = made_rows([30] * 400, 60, "float32", 0)
    rows = rows._replace(activation=stored_values(rows.activation, values))
    order = FeatureOrder("", np.arange(60, dtype=np.uint32))
    path = tmp_path / "tm.parquet"
    write_token_file(path, to_gaps(rows, order), rows.activation.dtype.name, 60)
    group = pq.read_metadata(path).row_group(0)
    assert "DELTA_BINARY_PACKED" in group.column(0).encodings
    assert "BYTE_STREAM_SPLIT" in group.column(1).encodings
    assert encoding in group.column(2).encodings
    assert (encoding == "RLE_DICTIONARY") == ("RLE_DICTIONARY" in group.column(2).encodings)


def test_frequent_features_take_less_space_along_their_order(tmp_path: Path) -> None:
    """The purpose of the order: the same tokens, coded by rank and by id."""
    rng = np.random.default_rng(0)
    density = rng.permutation(np.exp(rng.normal(-5, 2, 2_000)).clip(0, 0.3))
    fires = rng.random((4_000, 2_000)) < density
    fires[:, 0] = True
    token, feature = np.nonzero(fires)
    rows = TokenRows(
        np.arange(4_000, dtype=np.uint32),
        np.concatenate(([0], np.cumsum(fires.sum(1)))).astype(np.int64),
        feature,
        np.ones(len(token), np.float16),
    )
    by_id = FeatureOrder("", np.arange(2_000, dtype=np.uint32))
    entry = write_feature_order(Layout(tmp_path), "sae", 1, fires.sum(0))
    by_rank = read_feature_order(ParquetFiles(tmp_path), entry.path)
    sizes = []
    for order in (by_id, by_rank):
        write_token_file(tmp_path / "tm.parquet", to_gaps(rows, order), "float16", 2_000)
        group = pq.read_metadata(tmp_path / "tm.parquet").row_group(0)
        sizes.append(group.column(1).total_compressed_size)
    assert sizes[1] < 0.9 * sizes[0]
