"""The page on corpora says what columns are stored as, and what is refused."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "ingest.md"
FAR = 2**40
PAIRS = [("a", 1), ("b", 2)]

COLUMNS: dict[str, pa.Array] = {
    "`timestamp[ns]`": pa.array([1_000], pa.timestamp("ns")),
    "`timestamp[ns]` with nanoseconds": pa.array([1], pa.timestamp("ns")),
    "`timestamp[ms]` outside the years 1 to 9999": pa.array([FAR * 1000], pa.timestamp("ms")),
    "`timestamp[us, tz=Europe/Paris]`": pa.array([0], pa.timestamp("us", "Europe/Paris")),
    "`date32[day]` outside the years 1 to 9999": pa.array([-1_000_000], pa.date32()),
    "`date64[ms]`": pa.array([date.max], pa.date64()),
    "`time64[ns]` with nanoseconds": pa.array([1], pa.time64("ns")),
    "`duration[us]`": pa.array([1], pa.duration("us")),
    "`decimal128(38, 2)`": pa.array([Decimal("0.5")], pa.decimal128(38, 2)),
    "`decimal256(20, 2)`": pa.array([Decimal("0.5")], pa.decimal256(20, 2)),
    "`decimal256(39, 2)`": pa.array([Decimal("0.5")], pa.decimal256(39, 2)),
    "`halffloat`": pa.array([0.5], pa.float16()),
    "`binary` that is UTF-8": pa.array([b"a"]),
    "`binary` that is not UTF-8": pa.array([b"\xff"]),
    "`extension<arrow.uuid>`": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([b"0" * 16], pa.binary(16))
    ),
    "`dictionary<values=string, indices=int8, ordered=0>`": pa.array(
        ["a"], pa.dictionary(pa.int8(), pa.string())
    ),
    "`list_view<item: int8>`": pa.array([[1]], pa.list_view(pa.int8())),
    "`map<string, int64>` that repeats a key": pa.array(
        [[*PAIRS, *PAIRS]], pa.map_(pa.string(), pa.int64())
    ),
    "`map<string, int64>`": pa.array([PAIRS], pa.map_(pa.string(), pa.int64())),
    "`struct<a: null>`": pa.array([{"a": None}]),
    "`struct<Id: int64, id: int64>`": pa.array([{"Id": 1, "id": 2}]),
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its first two rows."""
    section = PAGE.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def stored(array: pa.Array) -> str:
    try:
        corpus = open_corpus(pa.table({"text": ["t"], "x": array}))
    except CorpusError:
        return "refused"
    return f"`{corpus.metadata_schema.field('x').type}`"


@pytest.mark.parametrize(
    "row",
    [row for row in rows("What columns are stored as") if row[0].startswith("`")],
    ids=lambda row: row[0],
)
def test_what_a_column_is_stored_as(row: list[str]) -> None:
    array = COLUMNS[row[0]]
    assert row[0].startswith(f"`{array.type}`")
    assert stored(array) == row[1]


def test_every_column_has_a_row() -> None:
    assert {row[0] for row in rows("What columns are stored as")} >= set(COLUMNS)


def test_two_columns_of_one_name() -> None:
    names = ["text", "x", "x"]
    with pytest.raises(CorpusError):
        open_corpus(pa.Table.from_arrays([pa.array(["t"])] * 3, names=names))


def test_messages_are_those_of_the_code() -> None:
    """The end of each refusal's message, which says what to do, is in the code."""
    code = Path(__file__).parents[2] / "ingest" / "corpus"
    source = "".join(path.read_text() for path in sorted(code.glob("*.py")))
    written = re.sub(r"\"\s*\n\s*f?r?\"", "", source)
    for what, message in rows("What is refused"):
        assert message.split("; ")[-1] in written, what
