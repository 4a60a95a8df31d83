"""Typed columns: what is stored reads alike in Python and in SQL, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus
from tests.ingest.typed_columns import FAR, KEPT, NS


def column(corpus: Any) -> tuple[pa.DataType, list[Any]]:
    """The type and the values of the column ``x``."""
    table = pa.Table.from_batches(corpus.batches(3))
    return table.schema.field("x").type, table.column("x").to_pylist()


def as_sql_shows(corpus: Any, path: Path) -> list[Any]:
    """The values of ``x`` by DuckDB, from the corpus as it is stored."""
    pq.write_table(pa.Table.from_batches(corpus.batches(3)), path)
    found = duckdb.execute(f"SELECT x FROM '{path}'").fetchall()
    return [_pairs(value) for (value,) in found]


def _pairs(value: Any) -> Any:
    """A map as Arrow gives it to Python."""
    return list(value.items()) if isinstance(value, dict) and "k" in value else value


def written(values: Any, folder: Path, **options: Any) -> Path:
    texts = [f"text {i}" for i in range(len(values))]
    pq.write_table(pa.table({"text": texts, "x": values}), folder / "c.parquet", **options)
    return folder / "c.parquet"


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_reads_alike_everywhere(tmp_path: Path, name: str) -> None:
    values, data_type, expected = KEPT[name]
    padded = pa.concat_arrays([values[:1], values]).slice(1) if name != "runs" else values
    for array in (values, padded):
        table = pa.table({"text": [f"t{i}" for i in range(len(array))], "x": array})
        corpus = open_corpus(table)
        assert column(corpus) == (data_type, expected)
        assert corpus.fingerprint() == open_corpus(table.slice(0)).fingerprint()
    shown = as_sql_shows(corpus, tmp_path / "stored.parquet")
    assert shown == expected
    with pa.ipc.new_file(str(tmp_path / "c.arrow"), table.schema) as file:
        file.write_table(table)
    assert column(open_corpus(tmp_path / "c.arrow")) == (data_type, expected)


@pytest.mark.parametrize("name", KEPT)
def test_parquet_is_read_alike(tmp_path: Path, name: str) -> None:
    values, data_type, expected = KEPT[name]
    try:
        path = written(values, tmp_path)
    except (pa.ArrowException, OSError):
        pytest.skip("Parquet has no such type")
    assert column(open_corpus(path)) == (data_type, expected)


SPARK = [
    datetime(1, 1, 1),
    datetime(1000, 1, 1),
    datetime(9999, 12, 31),
    datetime(2020, 1, 1),
    None,
]


@pytest.mark.parametrize(
    ("its", "nested"),
    [
        (pa.timestamp("us"), lambda d: d),
        (pa.list_(pa.timestamp("us")), lambda d: [d]),
        (pa.struct([("at", pa.timestamp("us"))]), lambda d: {"at": d}),
        (
            pa.list_(pa.struct([("at", pa.list_(pa.timestamp("us")))])),
            lambda d: [{"at": [d, None]}],
        ),
        (pa.map_(pa.string(), pa.timestamp("us")), lambda d: [("k", d)]),
    ],
    ids=["plain", "list", "struct", "nested", "map"],
)
def test_timestamps_of_96_bits_are_the_dates_they_were(
    tmp_path: Path, its: pa.DataType, nested: Callable[[Any], Any]
) -> None:
    expected = [nested(moment) for moment in SPARK]
    spark = {"use_deprecated_int96_timestamps": True, "store_schema": False}
    path = written(pa.array(expected, its), tmp_path, **spark)
    corpus = open_corpus(path)
    assert column(corpus)[1] == expected
    assert as_sql_shows(corpus, tmp_path / "stored.parquet") == expected


def test_timestamps_of_96_bits_keep_their_nanoseconds(tmp_path: Path) -> None:
    spark = {"use_deprecated_int96_timestamps": True, "store_schema": False}
    path = written(pa.array([NS], pa.timestamp("ns")), tmp_path, **spark)
    assert column(open_corpus(path)) == (pa.string(), ["2023-11-14T22:13:20.000000001"])
    far = pa.array([datetime(1000, 1, 1), None], pa.timestamp("us"))
    fine = pa.array([None, NS], pa.timestamp("ns"))
    table = pa.table({"text": ["a", "b"], "x": far, "y": fine})
    pq.write_table(table, path, **spark)
    with pytest.raises(CorpusError, match=r"c\.parquet has timestamps of 96 bits outside"):
        open_corpus(path)


@pytest.mark.parametrize(
    ("its", "said"),
    [
        (pa.struct([("Id", pa.int64()), ("id", pa.string())]), "'x'.*'Id' and 'id'"),
        (pa.list_(pa.struct([("", pa.int64())])), "'x'.*without a name"),
        (pa.map_(pa.string(), pa.struct([("a", pa.int8()), ("A", pa.int8())])), "'a' and 'A'"),
        (pa.struct([("a", pa.int64()), ("a", pa.string())]), "'a' and 'a'"),
    ],
    ids=str,
)
def test_structs_that_sql_cannot_name_are_refused(its: pa.DataType, said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        open_corpus(pa.table({"text": ["a"], "x": pa.nulls(1, its)}))


def test_bytes_that_promise_text_are_refused(tmp_path: Path) -> None:
    bad = pa.array([b"\xff"]).view(pa.string())
    path = written(pa.array(["fine"]), tmp_path)
    pq.write_table(pa.table({"text": bad}), path)
    with pytest.raises(CorpusError, match=r"rows 0 to 0: column 'text' does not fit string"):
        list(open_corpus(path).batches())


def test_the_document_itself_may_be_bytes(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": pa.array(["ünï".encode(), None])}), path)
    assert [b.column("text").to_pylist() for b in open_corpus(path).batches()] == [["ünï"]]
    pq.write_table(pa.table({"text": pa.array([b"fine", b"\xff"])}), path)
    with pytest.raises(CorpusError, match=r"column 'text' of .* is binary, not text"):
        open_corpus(path)


ID = 2**53 + 1
MAP = pa.map_(pa.string(), pa.int64())


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([ID]), pa.array([0.5]), [str(ID), "0.5"]),
        (pa.array([ID]), pa.array([float("nan")]), [str(ID), "NaN"]),
        (pa.array([7]), pa.array([0.5]), [7.0, 0.5]),
        (pa.array([2**24 + 1], pa.int32()), pa.array([0.5], pa.float32()), [2**24 + 1.0, 0.5]),
        (pa.array([[ID], []]), pa.array([[0.5]]), [[str(ID)], [], ["0.5"]]),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), [Decimal(2**64 - 1), Decimal(-1)]),
        (pa.array([1], pa.uint64()), pa.array([-1]), [1, -1]),
        (pa.array([ID]), pa.array([Decimal("0.5")]), [Decimal(f"{ID}.0"), Decimal("0.5")]),
        (pa.array([Decimal(10**17 + 1)]), pa.array([0.5]), [f"{10**17 + 1}", "0.5"]),
        (pa.array([date(2020, 1, 1)]), pa.array(["x"]), ["2020-01-01", "x"]),
        (pa.array([b"\xff"]), pa.array(["x"]), ["ff", "x"]),
        (
            pa.array([1], pa.timestamp("ms")),
            pa.array([1], pa.timestamp("us")),
            [datetime(1970, 1, 1, 0, 0, 0, 1000), datetime(1970, 1, 1, 0, 0, 0, 1)],
        ),
        (
            pa.array([[("a", 1)]], MAP),
            pa.array([[("a", 1), ("a", 2)]], MAP),
            [[{"key": "a", "value": 1}], [{"key": "a", "value": 1}, {"key": "a", "value": 2}]],
        ),
        *(
            (pa.array([value], its), pa.nulls(1), [value, None])
            for value, its in (
                ([("a", 1)], MAP),
                ([[1]], pa.list_(pa.list_(pa.int64()))),
                ({"a": 1}, pa.struct([("a", pa.int64())])),
                (date(2020, 1, 1), pa.date32()),
                (Decimal("0.5"), pa.decimal128(3, 1)),
            )
        ),
    ],
)
def test_files_that_disagree_lose_no_digit(
    tmp_path: Path, one: pa.Array, other: pa.Array, expected: list[Any]
) -> None:
    for arrays in ((one, other), (other, one)):
        for i, values in enumerate(arrays):
            pq.write_table(
                pa.table({"text": ["t"] * len(values), "x": values}), tmp_path / f"{i}.parquet"
            )
        found = column(open_corpus(tmp_path))[1]
        assert sorted(map(str, found)) == sorted(map(str, expected))


TYPES = st.recursive(
    st.sampled_from(
        [
            pa.timestamp("ns"),
            pa.timestamp("s"),
            pa.timestamp("ms", "UTC"),
            pa.date32(),
            pa.duration("ns"),
            pa.decimal128(20, 3),
            pa.binary(),
            pa.string(),
            pa.int64(),
            pa.float64(),
            pa.bool_(),
        ]
    ),
    lambda inner: (
        st.builds(pa.list_, inner)
        | st.builds(pa.large_list, inner)
        | st.builds(lambda a, b: pa.struct([("a", a), ("b", b)]), inner, inner)
        | st.builds(lambda t: pa.map_(pa.string(), t), inner)
    ),
    max_leaves=4,
)


def values_of(its: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of a type, as integers for what is temporal."""
    is_ = pa.types
    if is_.is_list(its) or is_.is_large_list(its):
        some: st.SearchStrategy[Any] = st.lists(values_of(its.value_type), max_size=3)
    elif is_.is_struct(its):
        some = st.fixed_dictionaries({f.name: values_of(f.type) for f in its})
    elif is_.is_map(its):
        some = st.lists(st.tuples(st.sampled_from("kab"), values_of(its.item_type)), max_size=3)
    elif is_.is_date32(its):
        some = st.integers(-(2**31), 2**31 - 1)
    elif is_.is_decimal(its):
        some = st.decimals(-(10**10), 10**10, places=3)
    elif is_.is_temporal(its):
        some = st.integers(-(2**62), 2**62) | st.integers(0, 2**40).map(lambda n: n * 1000)
    elif is_.is_binary(its):
        some = st.binary(max_size=4)
    elif is_.is_string(its):
        some = st.text(st.characters(codec="utf-8"), max_size=4)
    elif is_.is_boolean(its):
        some = st.booleans()
    elif is_.is_floating(its):
        some = st.floats(allow_nan=False)
    else:
        some = st.integers(-(2**63), 2**63 - 1)
    return st.none() | some


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), its=TYPES)
def test_any_typed_column_reads_alike_in_python_and_sql(
    tmp_path: Path, data: st.DataObject, its: pa.DataType
) -> None:
    values = data.draw(st.lists(values_of(its), min_size=1, max_size=5))
    array = pa.array(values, its)
    corpus = open_corpus(pa.table({"text": ["t"] * len(values), "x": array}))
    data_type, found = column(corpus)
    path = tmp_path / "stored.parquet"
    pq.write_table(pa.Table.from_batches(corpus.batches()), path)
    shown = [value for (value,) in duckdb.execute(f"SELECT x FROM '{path}'").fetchall()]
    assert [_plain(value, data_type) for value in shown] == found
    if data_type == its:
        assert found == array.to_pylist()


def _plain(value: Any, data_type: pa.DataType) -> Any:
    """A value of DuckDB's as Arrow gives it to Python: maps as lists of pairs."""
    if value is None:
        return None
    if pa.types.is_map(data_type):
        return [(key, _plain(item, data_type.item_type)) for key, item in value.items()]
    if pa.types.is_list(data_type):
        return [_plain(item, data_type.value_type) for item in value]
    if pa.types.is_struct(data_type):
        return {field.name: _plain(value[field.name], field.type) for field in data_type}
    return value


def test_years_of_any_length_are_numpys() -> None:
    seconds = [FAR, -(10**12), 2**55]
    table = pa.table({"text": ["t"] * 3, "x": pa.array(seconds, pa.timestamp("s"))})
    expected = [str(np.datetime64(second, "s")) for second in seconds]
    assert column(open_corpus(table))[1] == expected


def test_struct_fields_that_sql_tells_apart_are_read(tmp_path: Path) -> None:
    """DuckDB compares only A to Z without case."""
    its = pa.struct([("É", pa.int64()), ("é", pa.int64())])
    path = written(pa.array([{"É": 1, "é": 2}], its), tmp_path)
    assert column(open_corpus(path)) == (its, [{"É": 1, "é": 2}])
