"""Results: rows, slices, conversions, and their text."""

from __future__ import annotations

import sys

import pyarrow as pa
import pytest

from featuredb.errors import MissingExtraError
from queries.answers import Answer, Info, Rows
from queries.top_contexts import TopContexts
from tests.cli import answers


@pytest.fixture
def answer() -> TopContexts:
    return answers.top_contexts()


def test_a_row_is_read_by_attribute_key_position_and_unpacking() -> None:
    row = Rows(pa.table({"a": [1], "b c": ["x"]}))[0]
    assert (row.a, row["a"], row[0], row["b c"], row[-1]) == (1, 1, 1, "x", "x")
    first, second = row
    assert (first, second, len(row)) == (1, "x", 2)
    assert dict(row) == {"a": 1, "b c": "x"}
    assert repr(row) == "Row(a=1, b c='x')"
    assert "a" in dir(row)
    assert "b c" not in dir(row)


def test_an_unknown_column_names_the_ones_there_are(answer: TopContexts) -> None:
    with pytest.raises(
        AttributeError, match="no column 'color'; the row has sae, feature_id, rank, context_id"
    ):
        _ = answer[0].color


def test_a_column_called_keys_is_reached_by_key() -> None:
    row = Rows(pa.table({"keys": [3]}))[0]
    assert row["keys"] == 3
    assert dict(row) == {"keys": 3}


def test_rows_come_in_order_whatever_the_chunks() -> None:
    table = pa.concat_tables([pa.table({"a": [1, 2]}), pa.table({"a": [3]})])
    rows = Rows(table)
    assert [row.a for row in rows] == [1, 2, 3]
    assert [rows[i].a for i in (0, 1, 2, -1)] == [1, 2, 3, 3]


def test_a_slice_is_an_answer_of_the_same_kind(answer: TopContexts) -> None:
    assert [row.rank for row in answer[1:]] == [2]
    assert [row.rank for row in answer[::-1]] == [2, 1]
    assert isinstance(answer[:1], TopContexts)
    assert answer[:1].max_activation == answer.max_activation
    assert len(answer[5:]) == 0


def test_an_index_out_of_range_is_an_index_error(answer: TopContexts) -> None:
    with pytest.raises(IndexError):
        _ = answer[2]


@pytest.mark.parametrize("kind", answers.every_answer(), ids=lambda a: a.kind)
def test_frames_hold_the_rows(kind: Answer | Info) -> None:
    if isinstance(kind, Info):
        return
    names = kind.arrow().column_names
    assert list(kind.pandas().columns) == names
    assert kind.polars().columns == names
    assert len(kind.pandas()) == kind.polars().height == len(kind)


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_missing_frame_library_says_what_to_install(
    answer: TopContexts, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} .*featuredb\[frames\]"):
        getattr(answer, package)()


def test_columns_of_one_name_are_told_apart() -> None:
    table = pa.Table.from_arrays([pa.array([i]) for i in range(4)], names=["a", "a", "a_1", "a"])
    assert dict(Rows(table)[0]) == {"a": 0, "a_2": 1, "a_1": 2, "a_3": 3}


def test_repr_is_one_short_line(answer: TopContexts) -> None:
    assert repr(answer) == ("TopContexts(sae='sae', feature_id=1234, max_activation=10.0, 2 rows)")
    assert repr(answers.rows()[:1]) == "Rows(1 row)"


def test_answers_are_frozen(answer: TopContexts) -> None:
    with pytest.raises(AttributeError):
        answer.feature_id = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        answer[0]._values = ()  # type: ignore[misc]


def test_info_is_a_mapping_and_a_table_of_paths() -> None:
    info = answers.info()
    assert info["tokens"] == 25_100_000
    assert dict(info) == info.data
    leaves = dict(zip(*(info.arrow().column(i).to_pylist() for i in (0, 1)), strict=True))
    assert leaves["saes.0.normalized"] == "true"
    assert leaves["saes.0.dead"] is None
    assert leaves["model.hooks.1"] == "b"
    assert info.pandas()["name"].tolist() == info.polars()["name"].to_list() == list(leaves)
