"""Numbers and quotes of row-based files: nothing is rounded, lost or merged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus

LONG = "9" * 5000


def column(source: Any, name: str = "x") -> tuple[pa.DataType, list[Any]]:
    table = pa.Table.from_batches(open_corpus(source).batches())
    return table.schema.field(name).type, table.column(name).to_pylist()


def json_files(folder: Path, values: list[str]) -> list[Path]:
    """The same rows, with `values` as they are, as JSON Lines and as an array."""
    rows = [f'{{"text": "t", "x": {value}}}' for value in values]
    (folder / "c.jsonl").write_text("\n".join(rows))
    (folder / "c.json").write_text("[" + ",\n".join(rows) + "]")
    return [folder / "c.jsonl", folder / "c.json"]


@pytest.mark.parametrize(
    ("values", "data_type", "expected"),
    [
        (["1", LONG], pa.string(), ["1", LONG]),
        (["1", f"-{LONG}"], pa.string(), ["1", f"-{LONG}"]),
        ([f'{{"a": [{LONG}, 0.5, "é"]}}'], pa.string(), [f'{{"a": [{LONG}, 0.5, "é"]}}']),
        ([f"[{LONG}, 1]"], pa.list_(pa.string()), [[LONG, "1"]]),
        ([f'[{{"a": {LONG}}}]'], pa.list_(pa.string()), [[f'{{"a": {LONG}}}']]),
        (["1e400", "0.5"], pa.string(), ["1e400", "0.5"]),
        (["-1E+400"], pa.string(), ["-1E+400"]),
        (["1e-400", "0.5"], pa.string(), ["1e-400", "0.5"]),
        (['{"a": 1e400}'], pa.string(), ['{"a": 1e400}']),
        (["0e400", "-0.0"], pa.float64(), [0.0, 0.0]),
        (["1e300", "5e-324"], pa.float64(), [1e300, 5e-324]),
        (["NaN", "1"], pa.float64(), ["nan", 1.0]),
        (["Infinity", "-Infinity"], pa.float64(), [float("inf"), float("-inf")]),
        (["9007199254740993", "0.5"], pa.string(), ["9007199254740993", "0.5"]),
        (["9007199254740993", "NaN"], pa.string(), ["9007199254740993", "NaN"]),
        (["9007199254740992", "0.5"], pa.float64(), [2.0**53, 0.5]),
        (["9007199254740993", "2"], pa.int64(), [2**53 + 1, 2]),
        (["[9007199254740993]", "[0.5]"], pa.list_(pa.string()), [["9007199254740993"], ["0.5"]]),
        (["1234567890123456789.25"], pa.string(), ["1234567890123456789.25"]),
        (["12345678901234567890.0"], pa.string(), ["12345678901234567890.0"]),
        (["0.1234567890123456789"], pa.float64(), [0.1234567890123456789]),
        (['{"a": 1, "a": 2}'], pa.string(), ['{"a": 1, "a": 2}']),
    ],
)
def test_numbers_of_json_keep_their_digits(
    tmp_path: Path, values: list[str], data_type: pa.DataType, expected: list[Any]
) -> None:
    for path in json_files(tmp_path, values):
        found_type, found = column(path)
        assert found_type == data_type
        assert [str(v) if v != v else v for v in found] == expected


@pytest.mark.parametrize("values", [["1", "0.5", "9007199254740993"], ["9007199254740993", "NaN"]])
def test_types_do_not_depend_on_the_order(tmp_path: Path, values: list[str]) -> None:
    for order in (1, -1):
        for path in json_files(tmp_path, values[::order]):
            assert column(path)[0] == pa.string()


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n')
    with pytest.raises(CorpusError, match=r"c\.jsonl, line 2 has the key 'text' twice"):
        open_corpus(tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("fields", "data_type", "expected"),
    [
        (["9007199254740993", "0.5"], pa.string(), ["9007199254740993", "0.5"]),
        (["123456789012345678901", "1"], pa.string(), ["123456789012345678901", "1"]),
        (["1234567890123456789.25", "1.5"], pa.string(), ["1234567890123456789.25", "1.5"]),
        ([f"{'9' * 400}.5"], pa.string(), [f"{'9' * 400}.5"]),
        (["7", "0.5", ""], pa.float64(), [7.0, 0.5, None]),
        (["007"], pa.string(), ["007"]),
    ],
)
def test_numbers_of_csv_keep_their_digits(
    tmp_path: Path, fields: list[str], data_type: pa.DataType, expected: list[Any]
) -> None:
    for name, separator in (("c.csv", ","), ("c.tsv", "\t")):
        lines = [f"x{separator}text", *(f"{field}{separator}t" for field in fields)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        assert column(tmp_path / name) == (data_type, expected)


TSV = {
    "opened and closed on other lines": ('1\t"Hello\n2\tbye"\n3\tok\n', ['"Hello', 'bye"', "ok"]),
    "a whole quotation": ('1\t"Yes."\n2\tno\n', ['"Yes."', "no"]),
    "opened only": ('1\t"Second\n2\tthird\n', ['"Second', "third"]),
    "closed only": ('1\tSecond"\n2\tthird\n', ['Second"', "third"]),
    "inside": ('1\tsay "yes" now\n2\tno\n', ['say "yes" now', "no"]),
    "two in one field": ('1\t"a" and "b"\n2\tno\n', ['"a" and "b"', "no"]),
    "one quote alone": ('1\t"\n2\tno\n', ['"', "no"]),
    "inches": ('1\t6" and 5"\n2\t"x\n', ['6" and 5"', '"x']),
    "doubled and stray": ('1\t"say ""yes"""\n2\t"stray\n', ['"say ""yes"""', '"stray']),
    "as CSV: doubled": ('1\t"say ""yes"" now"\n2\tno\n', ['say "yes" now', "no"]),
    "as CSV: tab inside": ('1\t"a\tb"\n2\tno\n', ["a\tb", "no"]),
    "as CSV: line feed inside": ('1\t"a\nb"\n2\tno\n', ["a\nb", "no"]),
    "CRLF": ('1\t"Hello\r\n2\tbye"\r\n', ['"Hello', 'bye"']),
}


@pytest.mark.parametrize("name", TSV)
def test_quotes_of_tab_separated_files(tmp_path: Path, name: str) -> None:
    content, expected = TSV[name]
    line = "\r\n" if "\r\n" in content else "\n"
    (tmp_path / "c.tsv").write_bytes(f"id\ttext{line}{content}".encode())
    assert column(tmp_path / "c.tsv", "text")[1] == expected


def test_a_header_in_quotes_means_quotes_everywhere(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text('"id"\t"text"\n"1"\t"Yes."\n"2"\t"no"\n')
    assert column(tmp_path / "c.tsv", "text")[1] == ["Yes.", "no"]


TEXT = st.text(st.sampled_from('ab" \t\n'), max_size=6)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_tab_separated_rows_are_those_of_their_writer(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    """Quotes around everything are read as quotes; without quoting, as text."""
    path = tmp_path / "c.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("text", "other"), *rows])
    assert column(path, "text")[1] == [text for text, _ in rows]
    bare = [[field.replace("\t", " ").replace("\n", " ") for field in row] for row in rows]
    if all(_is_as_written(field) for row in bare for field in row):
        return
    path.write_text("".join("\t".join(row) + "\n" for row in [["text", "other"], *bare]))
    assert column(path, "text")[1] == [text for text, _ in bare]


def _is_as_written(field: str) -> bool:
    """Whether a writer of CSV may have left a field so."""
    inside = field[1:-1].replace('""', "")
    wrapped = len(field) > 1 and field[0] == field[-1] == '"'
    return '"' not in field or (wrapped and '"' not in inside)


def test_standard_input_may_be_separated_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io
    import sys

    for content, expected in (
        (b"id,text\n1,a\n", ["a"]),
        (b"\xef\xbb\xbfid\ttext\r\n1\ta\r\n", ["a"]),
        (b"Dear text, hello\n", ["Dear text, hello\n"]),
        (json.dumps({"text": "a"}).encode(), ["a"]),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert column("-", "text")[1] == expected
