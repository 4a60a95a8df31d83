"""Corpora from Python: whatever holds rows gives its rows, and what does not is refused by type."""

from __future__ import annotations

import collections
import io
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus

TEXTS = ["a", "b", "c"]
IDS = [2**53 + 1, 2, None]
COLUMNS = {"text": TEXTS, "id": IDS}
TABLE = pa.table(COLUMNS)
ROWS = TABLE.to_pylist()


def documents(source: Any, **options: Any) -> list[dict[str, Any]]:
    corpus = open_corpus(source, **options)
    rows: list[dict[str, Any]] = [row for batch in corpus.batches() for row in batch.to_pylist()]
    assert rows == [row for batch in corpus.batches() for row in batch.to_pylist()]
    return rows


def frame() -> Any:
    return pd.DataFrame({"text": TEXTS, "id": pd.array(IDS, "Int64")})


def relation() -> Any:
    import duckdb

    return duckdb.from_arrow(TABLE)


def data_set() -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(COLUMNS)


HOLDERS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: frame(),
    "pandas, by id": lambda: frame().set_index("id"),
    "pandas, of objects": lambda: pd.DataFrame(COLUMNS, dtype=object),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars, lazy": lambda: pl.LazyFrame(COLUMNS),
    "polars, 128 bits": lambda: pl.DataFrame(COLUMNS, schema_overrides={"id": pl.Int128}),
    "table": lambda: TABLE,
    "batch": lambda: TABLE.to_batches()[0],
    "reader": lambda: TABLE.to_reader(max_chunksize=2),
    "Arrow's data set": lambda: pa.dataset.dataset(TABLE),
    "scanner": lambda: pa.dataset.dataset(TABLE).scanner(),
    "relation": relation,
    "columns": lambda: COLUMNS,
    "columns, ordered": lambda: collections.OrderedDict(COLUMNS),
    "columns of arrays": lambda: {"text": np.array(TEXTS), "id": pa.chunked_array([IDS])},
    "columns of series": lambda: {"text": pl.Series(TEXTS), "id": tuple(IDS)},
    "rows": lambda: ROWS,
    "rows, one by one": lambda: iter(ROWS),
    "Dataset": data_set,
    "streamed Dataset": lambda: data_set().to_iterable_dataset(),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_rows_of_any_holder(name: str) -> None:
    rows = documents(HOLDERS[name]())
    assert [(row["text"], row["id"]) for row in rows] == list(zip(TEXTS, IDS, strict=True))
    assert [row["source_offset"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS, index=[3, 1, 2], name="other"),
        pl.Series(TEXTS),
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        collections.deque(TEXTS),
        dict.fromkeys(TEXTS).keys(),
        map(str, TEXTS),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_texts_of_any_holder(texts: Any) -> None:
    assert [row["text"] for row in documents(texts, text_column="body")] == TEXTS


@pytest.mark.parametrize(
    "splits",
    [
        lambda: {"train": TABLE, "test": pd.DataFrame(COLUMNS)},
        lambda: {"train": pl.DataFrame(COLUMNS), "test": {"text": TEXTS}},
        lambda: pytest.importorskip("datasets").DatasetDict(train=data_set(), test=data_set()),
        lambda: pytest.importorskip("datasets").IterableDatasetDict(
            train=data_set().to_iterable_dataset(), test=data_set()
        ),
    ],
)
def test_splits_are_read_in_turn_and_named_as_the_source(splits: Callable[[], Any]) -> None:
    rows = documents(splits())
    assert [row["text"] for row in rows] == TEXTS * 2
    assert [row["source"] for row in rows] == ["train"] * 3 + ["test"] * 3


def test_missing_values_and_types_of_pandas() -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", None, np.nan, "d"],
            "mixed": [1, "x", {"k": 1}, np.nan],
            "n": [1.0, 2.0, 3.0, np.nan],
            "month": pd.PeriodIndex(["2020-01", None, None, "2020-04"], freq="M"),
            "took": pd.to_timedelta([90, 1, 1, None], unit="s"),
            "kind": pd.Categorical(["x", "y", "y", None]),
        },
        index=[5, 6, 7, 8],
    )
    first, last = documents(frame)
    assert [first[name] for name in frame] == ["a", "1", 1.0, "2020-01", "00:01:30.000000", "x"]
    assert [last[name] for name in frame] == ["d", None, None, "2020-04", None, None]
    assert "__index_level_0__" not in first


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2**53 + 1, 0.5], [str(2**53 + 1), "0.5"]),
        ([2**53 + 1, np.nan], [2**53 + 1, None]),
        ([2**70, 1], [str(2**70), "1"]),
        ([[2**53 + 1], [0.5]], [[str(2**53 + 1)], ["0.5"]]),
        ([b"a", b"\xff"], [b"a", b"\xff"]),
    ],
)
def test_objects_of_pandas_keep_their_digits(values: list[Any], expected: list[Any]) -> None:
    column = pd.Series(values, dtype=object)
    rows = documents(pd.DataFrame({"text": ["a", "b"], "x": column}))
    assert [row["x"] for row in rows] == expected


def test_polars_categories_and_objects() -> None:
    kinds = pl.Series(["x", "y", None], dtype=pl.Categorical)
    tags = pl.Series(["x", "y", None], dtype=pl.Enum(["x", "y"]))
    frame = pl.DataFrame({"text": TEXTS, "kind": kinds, "tag": tags})
    assert [(row["kind"], row["tag"]) for row in documents(frame)] == [
        ("x", "x"),
        ("y", "y"),
        (None, None),
    ]
    frame = pl.DataFrame({"text": ["a"], "x": pl.Series([object()], dtype=pl.Object)})
    with pytest.raises(CorpusError, match="a value is a object"):
        documents(frame)


def test_values_that_json_has_no_type_for() -> None:
    import torch

    values = {
        "decimal": (Decimal("1E-30"), "0." + "0" * 29 + "1"),
        "uuid": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        "duration": (timedelta(hours=30), "30:00:00.000000"),
        "nanoseconds": (np.datetime64(1, "ns"), "1970-01-01T00:00:00.000000001"),
        "array": (np.array([1, 2], "datetime64[D]"), ["1970-01-02", "1970-01-03"]),
        "moment": (pd.Timestamp("2020-01-01"), "2020-01-01T00:00:00"),
        "nat": (pd.NaT, None),
        "na": (pd.NA, None),
        "bytes": (b"x", "x"),
        "tensor": (torch.ones(2), [1.0, 1.0]),
        "path": (Path("x"), "x"),
        "tuple": ((1, 2), [1, 2]),
        "nested": ([{"a": Decimal("1.50")}], ['{"a": "1.50"}']),
    }
    (row,) = documents([{"text": "t"} | {name: value for name, (value, _) in values.items()}])
    for name, (_, expected) in values.items():
        assert row[name] == expected, name


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"bytes", "a corpus cannot be a bytes"),
        ({"a", "b"}, "a corpus cannot be a set"),
        (io.StringIO("a\nb"), "a corpus cannot be a StringIO"),
        (3, "a corpus cannot be a int"),
        ({"text": "a"}, "'text' is a str and not a list"),
        ({"text": (t for t in TEXTS)}, "'text' is a generator and not a list"),
        ({"text": TEXTS, "n": [1]}, "columns differ in length"),
        ({"train": "train.jsonl"}, "'train' is a str and not a list"),
        ([("a", 1)], "document 0 is a tuple"),
        ([b"a"], "document 0 is a bytes"),
        (np.array([TEXTS]), "document 0 is a ndarray"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "Duplicate column names"),
        ([{"text": "t", "n": 10**5000}], "an integer has too many digits"),
        (pa.table({"text": TEXTS}).select([]), "no column 'text'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_holds_no_documents_is_refused_by_type(source: Any, said: str) -> None:
    with pytest.raises(CorpusError) as caught:
        documents(source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_of_any_kind(tmp_path: Path) -> None:
    class Named:
        def __fspath__(self) -> str:
            return str(tmp_path / "a.txt")

    (tmp_path / "a.txt").write_text("a")
    for source in (Named(), [Named()], np.str_(tmp_path / "a.txt")):
        assert [row["text"] for row in documents(source)] == ["a"]
