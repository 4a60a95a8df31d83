"""Answers as bytes: golden outputs, and that they read back."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featuredb.render.formats import FORMATS, to_bytes
from queries.answers import Answer, Info, Rows
from queries.near import Neighbors
from tests.cli import answers

_KINDS = pytest.mark.parametrize("answer", answers.every_answer(), ids=lambda a: a.kind)


@pytest.fixture
def small() -> Neighbors:
    """Every special case of a format, in two rows."""
    table = pa.table(
        {
            "rank": pa.array([1, 2], pa.int32()),
            "score": pa.array([0.1, float("nan")], pa.float32()),
            "top_tokens": pa.array([[" a,b", '"\n'], None], pa.list_(pa.string())),
            "note": pa.array(["é\x1b[0m", None]),
        }
    )
    return Neighbors(table, of_sae="sae", of_feature_id=7, by="decoder")


def test_json_bytes(small: Neighbors) -> None:
    assert to_bytes(small, "json").decode() == (
        '{"kind": "neighbors", "of_sae": "sae", "of_feature_id": 7, "by": "decoder", '
        '"method": "exact", "recall": 1.0, "chance": "", "unit": "token", "opposite": false, '
        '"token": null, "matrix": null, "label": null, "rows": [\n'
        '{"rank": 1, "score": 0.1, "top_tokens": [" a,b", "\\"\\n"], "note": "é\\u001b[0m"},\n'
        '{"rank": 2, "score": null, "top_tokens": null, "note": null}\n'
        "]}\n"
    )


def test_jsonl_bytes(small: Neighbors) -> None:
    assert to_bytes(small, "jsonl").decode() == (
        '{"rank": 1, "score": 0.1, "top_tokens": [" a,b", "\\"\\n"], "note": "é\\u001b[0m"}\n'
        '{"rank": 2, "score": null, "top_tokens": null, "note": null}\n'
    )


def test_csv_bytes(small: Neighbors) -> None:
    assert to_bytes(small, "csv").decode() == (
        'rank,score,top_tokens,note\n1,0.1,"["" a,b"", ""\\""\\n""]",é\x1b[0m\n2,nan,,\n'
    )


def test_parquet_bytes_hold_the_table_and_the_attributes(small: Neighbors) -> None:
    back = pq.read_table(io.BytesIO(to_bytes(small, "parquet")))
    assert back.replace_schema_metadata().to_pydict()["top_tokens"] == [[" a,b", '"\n'], None]
    assert back.schema.equals(small.table.schema)
    about = json.loads(back.schema.metadata[b"featuredb"])
    assert about == {
        "kind": "neighbors",
        "of_sae": "sae",
        "of_feature_id": 7,
        "by": "decoder",
        "method": "exact",
        "recall": 1.0,
        "chance": "",
        "unit": "token",
        "opposite": False,
        "token": None,
        "matrix": None,
        "label": None,
    }


def test_info_is_its_own_object() -> None:
    document = json.loads(to_bytes(answers.info(), "json"))
    assert document["saes"][0]["name"] == answers.HOSTILE
    assert document["l0"] is None
    assert (
        to_bytes(Info({"a": 1, "b": [True]}), "json")
        == b'{\n  "a": 1,\n  "b": [\n    true\n  ]\n}\n'
    )
    assert to_bytes(Info({"a": 1, "b": [True]}), "csv") == b"name,value\na,1\nb.0,true\n"


def test_a_card_carries_its_contexts_and_neighbors() -> None:
    document = json.loads(to_bytes(answers.feature_card(), "json"))
    assert list(document) == [
        "kind",
        "contexts",
        "sample",
        "silent",
        "neighbors",
        "coactive",
        "chance",
        "measured",
        "labels",
        "rows",
    ]
    assert [row["rank"] for row in document["contexts"]] == [1, 2]
    assert document["rows"][0]["promoted_tokens"] == [{"token": answers.HOSTILE, "logit": 2.5}]


@_KINDS
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_is_strict_and_safe_to_print(answer: Answer | Info, form: str) -> None:
    data = to_bytes(answer, "json" if form == "json" else "jsonl").decode()
    for document in [data] if form == "json" else data.splitlines():
        json.loads(document, parse_constant=pytest.fail)
    assert not any((ord(c) < 32 and c != "\n") or 126 < ord(c) < 160 for c in data)
    assert "\u202e" not in data


@_KINDS
def test_every_format_has_the_same_rows(answer: Answer | Info) -> None:
    n = answer.arrow().num_rows
    assert len(to_bytes(answer, "jsonl").splitlines()) == n
    text = to_bytes(answer, "csv").decode()
    assert len(list(csv.reader(io.StringIO(text, newline="")))) == n + 1
    assert pq.read_table(io.BytesIO(to_bytes(answer, "parquet"))).num_rows == n


@pytest.mark.parametrize("empty", answers.every_empty_answer(), ids=lambda a: a.kind)
def test_an_empty_answer_has_every_format(empty: Answer) -> None:
    for form in FORMATS:
        assert isinstance(to_bytes(empty, form), bytes)
    assert json.loads(to_bytes(empty, "json"))["rows"] == []
    assert to_bytes(empty, "jsonl") == b""


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_single_precision_reads_back_exactly_with_few_digits(value: float) -> None:
    rows = Rows(pa.table({"x": pa.array([[value]], pa.list_(pa.float32()))}))
    written = json.loads(to_bytes(rows, "jsonl"))["x"][0]
    assert np.float32(written) == np.float32(value)
    assert len(Decimal(repr(written)).normalize().as_tuple().digits) <= 9


def test_sql_types_have_a_json_form() -> None:
    table = pa.table(
        {
            "half": pa.array(np.array([0.5], np.float16)),
            "huge": pa.array([Decimal(2**70)], pa.decimal128(38, 0)),
            "price": pa.array([Decimal("0.50")], pa.decimal128(4, 2)),
            "exact": pa.array([Decimal("0.1234567890123456789")], pa.decimal128(38, 19)),
            "day": pa.array([date(2020, 1, 2)]),
            "time": pa.array([datetime(2020, 1, 2, 3, 4, 5)]),
            "blob": pa.array([b"\x00\xff"]),
            "pair": pa.array([{"a": 0.1, "b": [1]}]),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    assert json.loads(to_bytes(Rows(table), "jsonl")) == {
        "half": 0.5,
        "huge": 2**70,
        "price": 0.5,
        "exact": "0.1234567890123456789",
        "day": "2020-01-02",
        "time": "2020-01-02T03:04:05",
        "blob": "00ff",
        "pair": {"a": 0.1, "b": [1]},
        "map": [["k", 1]],
    }
    assert to_bytes(Rows(table), "csv").decode().splitlines()[1].startswith("0.5,")
