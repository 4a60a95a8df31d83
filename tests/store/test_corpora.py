"""Metadata of one name in several corpora: one column, in Python as in SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from featuredb.errors import QueryError
from featuredb.store.corpora import Texts, unite
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from queries.catalog.documents import metadata
from tests.make_store import make_store
from tests.queries.test_questions import small_world

UNITED = [
    ([1, 2**60 + 1, None], pa.int64(), [1.5, 2.0, None], pa.float64()),
    ([1, 2**40 + 1, None], pa.int64(), [1.5, 2.0, None], pa.float32()),
    ([1, 2, 3], pa.int32(), [2**40, 2, None], pa.int64()),
    ([-1, 2, 3], pa.int64(), [2**64 - 1, 2, None], pa.uint64()),
    ([True, False, None], pa.bool_(), [5, 0, None], pa.int64()),
    ([True, False, None], pa.bool_(), [0.5, 0, None], pa.float64()),
    ([-5, 2**60 + 1, None], pa.int64(), ["x", "", None], pa.string()),
    ([True, False, None], pa.bool_(), ["x", "", None], pa.string()),
    (["y", "", None], pa.string(), ["x", "", None], pa.string()),
    ([1, -1, None], pa.timestamp("ms"), [1, 2**50, None], pa.timestamp("us")),
    ([["y"], [], None], pa.list_(pa.string()), [["x"], [], None], pa.list_(pa.string())),
]

APART = [
    (["a"], pa.list_(pa.string())),
    ({"a": 1}, pa.struct([("a", pa.int64())])),
    (1.5, pa.float64()),
    (0, pa.date32()),
    (0, pa.timestamp("us")),
]


def documents(
    root: Path, *columns: pa.Array, called: tuple[str, ...] = ("m", "m")
) -> tuple[Texts, list[Path]]:
    """A store with `columns` (3 rows each) as its corpora's metadata, named ``m``."""
    [corpus] = make_store(root, small_world(("demo",))).corpora
    stored = pq.read_table(root / corpus.documents.path)
    corpora, paths = [], []
    for i, column in enumerate(columns):
        paths.append(root / f"{i}.parquet")
        table = stored.select(["source"]).append_column(called[i], column)
        pq.write_table(table, paths[-1], store_schema=False)
        file = replace(corpus.documents, path=paths[-1].name)
        first = i * corpus.n_documents
        corpora.append(
            replace(corpus, id=str(i), documents=file, metadata=(called[i],), first_document=first)
        )
    snapshot = replace(read_snapshot(Layout(root)), corpora=tuple(corpora))
    return Texts(root, snapshot, ParquetFiles(root)), paths


def united(paths: list[Path]) -> pa.Table:
    """All columns but the first."""
    branches = " UNION ALL BY NAME ".join(f"FROM read_parquet('{p}')" for p in paths)
    found = duckdb.sql(branches)
    assert found is not None
    return found.to_arrow_table().remove_column(0)


@pytest.mark.parametrize(
    "called", [("Topic", "topic"), ("topic", "TOPIC"), ("É", "é"), ("Source_", "source_")]
)
def test_names_that_sql_does_not_tell_apart_are_one(
    tmp_path: Path, called: tuple[str, str]
) -> None:
    first, second = pa.array(["a", "b", None]), pa.array(["c", None, "d"])
    texts, paths = documents(tmp_path / "s.fdb", first, second, called=called)
    found = texts.documents(range(6)).remove_column(0)
    assert found == united(paths)
    assert metadata(texts._snapshot, "d").count(" AS ") == 1 + len(found.column_names)  # type: ignore[arg-type]


@pytest.mark.parametrize(("one", "its", "other", "others"), UNITED, ids=lambda v: str(v)[:30])
def test_types_that_unite_are_one_column_as_in_sql(
    tmp_path: Path, one: list[Any], its: pa.DataType, other: list[Any], others: pa.DataType
) -> None:
    assert unite(its, others)
    assert unite(others, its)
    texts, paths = documents(tmp_path / "s.fdb", pa.array(one, its), pa.array(other, others))
    found = texts.documents(range(6)).column("m").combine_chunks()
    expected = united(paths).column("m")
    assert found.to_pylist() == expected.to_pylist()
    if not pa.types.is_list(its):
        assert found.type == expected.type


@pytest.mark.parametrize(("value", "its"), APART, ids=lambda v: str(v)[:30])
def test_types_that_do_not_are_read_all_the_same(
    tmp_path: Path, value: object, its: pa.DataType
) -> None:
    for others in (pa.string(), pa.binary(), *(t for _, t in APART if t != its)):
        assert not unite(its, others)
        assert not unite(others, its)
    column = pa.array([value, None, value], its)
    texts, _ = documents(tmp_path / "s.fdb", column, pa.array(["x", "", None]))
    found = texts.documents(range(6)).column("m").to_pylist()
    assert found[1] is None
    assert isinstance(found[0], str)
    assert found[3:] == ["x", "", None]


def test_what_can_be_no_column_is_told(tmp_path: Path) -> None:
    seconds = pa.array([2**40, None, 1], pa.timestamp("s"))
    finer = pa.array([1, None, 1], pa.timestamp("ns"))
    texts, _ = documents(tmp_path / "s.fdb", seconds, finer)
    with pytest.raises(QueryError, match=r"column 'm' is timestamp.* in one corpus"):
        texts.documents(range(6))
