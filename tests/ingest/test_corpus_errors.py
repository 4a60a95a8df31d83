"""Every corpus error is one line that names the corpus."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from featuredb.errors import CorpusError, FeatureDBError
from ingest.corpus import open_corpus


def refused(source: Any, **options: Any) -> str:
    """The error's line from opening and reading a corpus."""
    with pytest.raises(CorpusError) as caught:
        list(open_corpus(source, **options).batches())
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_missing_path_names_those_nearby(tmp_path: Path) -> None:
    written(tmp_path, "corpus.jsonl", "")
    assert f"did you mean {tmp_path / 'corpus.jsonl'}?" in refused(tmp_path / "korpus.jsonl")
    assert "corpus.jsonl" in refused(tmp_path / "zzz")
    assert f"no folder {tmp_path / 'x'}" in refused(tmp_path / "x" / "y")


@pytest.mark.parametrize("name", ["", " ", Path("~nobody-here/c.txt")])
def test_a_path_that_names_nothing(name: str | Path) -> None:
    assert "no name" in refused(name) or "~nobody-here" in refused(name)


def test_a_list_with_a_missing_path_is_not_taken_for_texts(tmp_path: Path) -> None:
    there = written(tmp_path, "a.txt", "a")
    assert "b.txt" in refused([str(there), str(tmp_path / "b.txt")])


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.json", "c.csv", "c"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    message = refused(written(tmp_path, name, ""))
    assert name in message
    assert "is empty" in message


@pytest.mark.parametrize("name", ["c.parquet", "c.arrow"])
@pytest.mark.parametrize("content", ["", "PAR1 no longer", "ARROW1 neither", "x" * 5000])
def test_damaged_columnar_files(tmp_path: Path, name: str, content: str) -> None:
    message = refused(written(tmp_path, name, content))
    assert f"{name} cannot be read as" in message


def test_a_parquet_file_cut_short_or_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["a" * 1000] * 100}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "c.parquet cannot be read as Parquet" in refused(path)
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert "is empty" in refused(path)


def test_a_parquet_file_with_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pa.table({"text": [str(i) for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(bytes(content))
    assert "c.parquet cannot be read as Parquet" in refused(path)


def test_empty_and_unsuitable_folders(tmp_path: Path) -> None:
    assert "has no corpus files" in refused(tmp_path)
    written(tmp_path, "a.pdf", "x")
    written(tmp_path, "b.pdf", "x")
    assert "only 2 .pdf" in refused(tmp_path)


def test_a_glob_without_matches(tmp_path: Path) -> None:
    assert f"no file matches {tmp_path}/*.txt" in refused(f"{tmp_path}/*.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", '{"body": "a", "title": "b"}\n'),
        ("c.json", '[{"body": "a", "title": "b"}]'),
        ("c.csv", "body,title\na,b\n"),
    ],
)
def test_a_missing_column_names_those_that_exist(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, name, content)
    message = refused(path)
    assert "no column 'text'" in message
    assert "body, title" in message
    assert "--text-column" in message
    assert "no column 'id'" in refused(path, text_column="body", id_column="id")
    assert "no column 'ids'" in refused(path, tokens_column="ids")


def test_a_file_of_a_folder_without_the_column_is_named(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", '{"text": "a"}\n')
    written(tmp_path, "b.jsonl", '{"txt": "a"}\n')
    message = refused(tmp_path)
    assert message.startswith("b.jsonl has no column 'text'")
    assert message.endswith("or name the files to read by a glob")


@pytest.mark.parametrize(
    ("value", "said"), [("1", "a number"), ("[1]", "a list"), ('{"a": 1}', "an object")]
)
def test_json_text_that_is_not_text(tmp_path: Path, value: str, said: str) -> None:
    path = written(tmp_path, "c.jsonl", '{"text": "fine"}\n{"text": ' + value + "}\n")
    message = refused(path)
    assert f"row 1: column 'text' is {said}, not text" in message


def test_typed_columns_of_the_wrong_type() -> None:
    table = pa.table({"text": [1, 2], "ids": ["a", "b"]})
    assert "is int64, not text" in refused(table)
    assert "is string, not a list of integers" in refused(table, tokens_column="ids")
    assert "is string, not a list of {role, content}" in refused(table, messages_column="ids")
    assert "does not fit list" in refused(pa.table({"ids": [[2**40]]}), tokens_column="ids")


@pytest.mark.parametrize("chat", [3, [3], [{"from": "a", "value": "b"}], [{"role": None}], [None]])
def test_chats_that_are_none(chat: Any) -> None:
    assert "row 1: column 'm' has to be a list of {" in refused(
        [{"m": []}, {"m": chat}], messages_column="m"
    )


def test_nothing_but_nulls() -> None:
    assert "every 'text' of Python is null" in refused([None, None])


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv", "c.txt"])
def test_invalid_utf8_names_the_place(tmp_path: Path, name: str) -> None:
    content = b'{"text": "a"}\n{"text": "\xff"}\n' if "json" in name else b"text,x\na,b\nc,\xff\n"
    path = written(tmp_path, name, content)
    message = refused(path)
    byte, line = content.index(b"\xff"), 1 + content[: content.index(b"\xff")].count(b"\n")
    assert f"{name} is not valid UTF-8 at byte {byte} (line {line})" in message


def test_invalid_utf8_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "line\nünï\n".encode() * 3 + b"\xe7\x8c|" + b"end"
    monkeypatch.setattr("ingest.corpus.stream.CHUNK_BYTES", 2)
    message = refused(written(tmp_path, "c.txt", content))
    assert f"at byte {content.index(b'|') - 2} (line 7)" in message
    message = refused(written(tmp_path, "c.txt", content[: content.index(b"|")]))
    assert f"at byte {content.index(b'|') - 2} (line 7)" in message


def test_other_encodings_and_binary_files(tmp_path: Path) -> None:
    assert "is UTF-16" in refused(written(tmp_path, "c.txt", "text".encode("utf-16")))
    assert "is UTF-16" in refused(written(tmp_path, "c.csv", "text\na\n".encode("utf-16")))
    for name in ("c.txt", "c.bin", "c.jsonl", "c.csv"):
        assert f"{name} is a binary file" in refused(written(tmp_path, name, b"ab\0\1\2"))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, "c.csv", b"\xef\xbb\xbftext\na\n")
    assert [row["text"] for batch in open_corpus(path).batches() for row in batch.to_pylist()] == [
        "a"
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        ("c.jsonl", '{"text": "a"}\n["b"]\n', "line 2 is a list, not an object"),
        ("c.jsonl", "[" * 100_000 + "\n", "line 1 is not valid JSON"),
        ("c.json", '[{"text": "a"},', "is not valid JSON at character 15"),
        ("c.json", '[{"text": "a"}', "the array has no end"),
        ("c.json", '[{"text": "a"} {"text": "b"}]', "',' or ']' expected"),
        ("c.json", '[{"text": "a"}] more', "something after the array"),
        ("c.json", '[{"text": nul}, ' + '{"text": "a"}, ' * 9, "at character 10"),
        ("c.json", '[{"text": "a}', "Unterminated string"),
        ("c.json", '["a"]', "element 0 is a str, not an object"),
        ("c.json", "[" * 100_000, "nested too deep"),
        ("c.csv", "text,x\na,b\nc\n", "line 3 has 1 fields where the header has 2"),
        ("c.csv", 'text,x\na,"b\n', "line 2 is not valid CSV"),
        ("c.csv", "text,x,x\na,b,c\n", "two columns named 'x'"),
        ("c.jsonl", '{"text": "a\\ud83d"}\n', "line 1 holds half of a surrogate pair"),
        ("c.jsonl.gz", "not compressed", "line 1 is not valid JSON"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: str, said: str) -> None:
    message = refused(written(tmp_path, name, content))
    assert said in message
    assert name in message


def test_values_nested_too_deep(tmp_path: Path) -> None:
    value = '{"a":' * 900 + "9" * 4400 + "}" * 900
    message = refused(written(tmp_path, "c.jsonl", f'{{"text": "a", "x": {value}}}'))
    assert "rows 0 to 0: column 'x' is nested too deep" in message


@pytest.mark.parametrize("levels", [9, 50, 300])
def test_lists_that_no_reader_opens_are_text(tmp_path: Path, levels: int) -> None:
    value = "[" * levels + "]" * levels
    path = written(
        tmp_path, "c.jsonl", f'{{"text": "a", "x": {value}}}\n{{"text": "b", "x": [[1]]}}'
    )
    (batch,) = open_corpus(path).batches()
    assert batch.column("x").to_pylist() == [value, "[[1]]"]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = written(tmp_path, "c.jsonl", '{"text": "\\ud83d\\ude42"}\n')
    (batch,) = open_corpus(path).batches()
    assert batch.column("text")[0].as_py() == "🙂"


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: c[:40] + c[44:]])
def test_damaged_compression(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    content = gzip.compress("".join(f'{{"text": "{i}"}}\n' for i in range(999)).encode())
    message = refused(written(tmp_path, "c.jsonl.gz", damage(content)))
    assert "c.jsonl.gz" in message


@pytest.mark.parametrize(
    "source", [5, None, [1, 2], ["a", b"b"], [{"text": "a", "x": object()}], ["\ud800"]]
)
def test_python_objects_that_are_no_documents(source: Any) -> None:
    refused(source)


def test_empty_iterables_and_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is empty" in refused([])
    assert "is empty" in refused(pa.table({"text": pa.array([], pa.string())}))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "standard input is empty" in refused("-")


def test_two_columns_of_one_name() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    assert "two columns named 'text'" in refused(table)


def test_a_file_that_changes_while_being_read(tmp_path: Path) -> None:
    path = written(tmp_path, "c.jsonl", '{"text": "a", "x": 1}\n')
    corpus = open_corpus(path)
    written(tmp_path, "c.jsonl", '{"text": "a", "x": "one"}\n')
    with pytest.raises(CorpusError, match="column 'x' does not fit int64"):
        list(corpus.batches())
    path.unlink()
    with pytest.raises(CorpusError, match="cannot read"):
        list(corpus.batches())


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        open_corpus(["a"], tokens_column="a", messages_column="b")
    with pytest.raises(ValueError, match="at least 1"):
        open_corpus(["a"], max_documents=0)


@pytest.mark.parametrize("source", ["hf:", "hf:@train", "hf:owner/data set"])
def test_a_malformed_name_of_a_data_set(source: str) -> None:
    with pytest.raises(FeatureDBError, match="write hf:owner/dataset"):
        open_corpus(source)
