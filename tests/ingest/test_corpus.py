"""Every shape of corpus gives the same documents, in order, in bounded batches."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.corpus import CorpusReader, open_corpus
from ingest.corpus.part import BATCH_BYTES
from tests.logs import logged

ROWS: list[dict[str, Any]] = [
    {"text": 'One fish,\n"two" fish', "year": 1960, "score": 0.5, "topic": "rhyme"},
    {"text": "", "year": 1961, "score": 1.5, "topic": "nothing"},
    {"text": "Ünïcödé 猫 🙂", "year": None, "score": 2.25, "topic": "007"},
]
TEXTS = [row["text"] for row in ROWS]


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "c.parquet": lambda p: pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), p),
    "c.feather": lambda p: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(p)),
    "c.arrow": write_arrow_stream,
    "c.jsonl": lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "c.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "c.csv": write_csv,
    "c.tsv": lambda p: write_csv(p, "\t"),
}


def documents(corpus: CorpusReader, batch_rows: int = 1024) -> list[dict[str, Any]]:
    return [row for batch in corpus.batches(batch_rows) for row in batch.to_pylist()]


def texts(corpus: CorpusReader) -> list[str]:
    return [row["text"] for row in documents(corpus)]


def json_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "compression"),
    # Parquet compresses itself, and is read from its end.
    [(name, end) for name in WRITERS for end in ("", ".gz", ".zst") if "parquet" not in name + end]
    + [("c.parquet", "")],
)
def test_every_shape_gives_the_same_documents(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    if compression:
        squeeze = gzip.compress if compression == ".gz" else zstandard.ZstdCompressor().compress
        packed = path.with_name(name + compression)
        packed.write_bytes(squeeze(path.read_bytes()))
        path = packed
    corpus = open_corpus(path)
    assert texts(corpus) == TEXTS
    assert corpus.metadata_schema == pa.schema(
        [("year", pa.int64()), ("score", pa.float64()), ("topic", pa.string())]
    )
    rows = documents(corpus)
    assert [row["year"] for row in rows] == [1960, 1961, None]
    assert [row["topic"] for row in rows] == ["rhyme", "nothing", "007"]
    assert [row["source_offset"] for row in rows] == [0, 1, 2]
    assert {row["source"] for row in rows} == {str(path)}
    assert corpus.rows == 3


@pytest.mark.parametrize(
    "source",
    [
        pa.Table.from_pylist(ROWS),
        ROWS,
        iter(ROWS),
        pytest.param([dict(row, year=np.int64(row["year"] or 0)) for row in ROWS], id="numpy"),
    ],
)
def test_documents_in_memory(source: Any) -> None:
    corpus = open_corpus(source)
    assert texts(corpus) == TEXTS
    assert texts(corpus) == TEXTS
    assert corpus.metadata_schema.names == ["year", "score", "topic"]


def test_strings_in_python_and_a_generator_is_read_once() -> None:
    corpus = open_corpus(text for text in ["b", "a", ""])
    assert texts(corpus) == texts(corpus) == ["b", "a", ""]
    assert corpus.metadata_schema.names == []


def test_an_arrow_table_is_the_same_however_it_is_chunked() -> None:
    table = pa.Table.from_pylist(ROWS)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert open_corpus(table).fingerprint() == open_corpus(chunked).fingerprint()
    assert open_corpus(table).fingerprint() != open_corpus(table.slice(1)).fingerprint()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"Once upon a time.\nThe end.\n", ["Once upon a time.\nThe end.\n"]),
        (b'{"text": "a"}\n\n{"text": "b"}\n', ["a", "b"]),
        (b'[{"text": "a"},\n {"text": "b"}]', ["a", "b"]),
        (gzip.compress(b'{"text": "a"}\n', mtime=0), ["a"]),
    ],
)
def test_standard_input_is_recognized_by_content(
    monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    corpus = open_corpus("-")
    assert texts(corpus) == texts(corpus) == expected
    assert documents(corpus)[0]["source"] == "stdin"


def test_a_folder_is_read_in_order_of_path_and_shapes_mix(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("from z")
    (tmp_path / "a.md").write_text("")
    json_lines(tmp_path / "b" / "a.jsonl", [{"text": "from a", "n": 1}])
    pyarrow.parquet.write_table(pa.table({"text": ["last"], "n": [2.5]}), tmp_path / "c.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "LICENSE").write_text("not a document")
    corpus = open_corpus(tmp_path)
    assert [(row["source"], row["text"], row["n"]) for row in documents(corpus)] == [
        ("a.md", "", None),
        ("b/a.jsonl", "from a", 1.0),
        ("b/z.txt", "from z", None),
        ("c.parquet", "last", 2.5),
    ]


def test_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert texts(open_corpus(f"{tmp_path}/*.txt")) == ["a.txt", "b.txt"]
    assert texts(open_corpus([tmp_path / "c.md", tmp_path / "a.txt"])) == ["c.md", "a.txt"]
    assert texts(open_corpus([f"{tmp_path}/c.md", f"{tmp_path}/*.txt"])) == [
        "c.md",
        "a.txt",
        "b.txt",
    ]
    assert texts(open_corpus(["c.md is a file", "a text"])) == ["c.md is a file", "a text"]


def test_source_offsets_are_lines_and_nulls_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": null}\n{"other": 1}\n{"text": ""}\n')
    corpus = open_corpus(path)
    with logged() as messages:
        rows = documents(corpus)
    assert [(row["text"], row["source_offset"]) for row in rows] == [("a", 0), ("", 4)]
    assert corpus.skipped_null == 2
    assert len(messages) == 1
    assert messages[0].startswith("2 rows")


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.csv"])
def test_max_documents_counts_what_is_not_null(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    corpus = open_corpus(path, max_documents=2)
    assert texts(corpus) == TEXTS[:2]
    assert corpus.rows == 2
    nulls = open_corpus([{"text": None}, {"text": "a"}, {"text": "b", "late": 1}], max_documents=1)
    assert texts(nulls) == ["a"]
    assert nulls.metadata_schema.names == []


def test_reserved_and_clashing_names_get_an_underscore(tmp_path: Path) -> None:
    row = {"body": "x", "text": "t", "Source": "s", "role": "r", "a": 1, "A": 2, "text_": 3}
    corpus = open_corpus(json_lines(tmp_path / "c.jsonl", [row]), text_column="body", id_column="A")
    assert corpus.metadata_schema.names == ["text_", "Source_", "role_", "a", "A_", "text__"]
    assert corpus.id_column == "A_"
    (document,) = documents(corpus)
    assert document["text"] == "x"
    assert (document["text_"], document["text__"], document["A_"]) == ("t", 3, 2)


def test_an_unnamed_column_gets_a_name(tmp_path: Path) -> None:
    """As pandas writes its index."""
    (tmp_path / "c.csv").write_text(",text\n7,x\n")
    corpus = open_corpus(str(tmp_path / "c.csv"))
    assert corpus.metadata_schema.names == ["_"]
    assert documents(corpus)[0]["_"] == 7


@pytest.mark.parametrize(
    ("values", "data_type", "expected"),
    [
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([1, "a"], pa.string(), ["1", "a"]),
        ([True, None], pa.bool_(), [True, None]),
        ([True, 1], pa.string(), ["true", "1"]),
        ([2**63], pa.string(), [str(2**63)]),
        ([None, None], pa.string(), [None, None]),
        ([{"k": [1]}, None], pa.string(), ['{"k": [1]}', None]),
        ([[1], [2.5]], pa.list_(pa.float64()), [[1.0], [2.5]]),
        ([["a", 1], []], pa.list_(pa.string()), [["a", "1"], []]),
        ([[], None], pa.list_(pa.string()), [[], None]),
        ([[{"k": 1}]], pa.list_(pa.string()), [['{"k": 1}']]),
        ([["a"], "b"], pa.string(), ['["a"]', "b"]),
    ],
)
def test_types_are_inferred_from_all_values(values: Any, data_type: Any, expected: Any) -> None:
    for order in (1, -1):
        corpus = open_corpus([{"text": "", "x": value} for value in values[::order]])
        assert corpus.metadata_schema.field("x").type == data_type
        assert [row["x"] for row in documents(corpus)] == expected[::order]


def test_types_that_parquet_cannot_hold_are_changed(tmp_path: Path) -> None:
    union = pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 0]), pa.array(["", "b"])]
    )
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.large_string()),
            "category": pa.array(["x", "y"]).dictionary_encode(),
            "tags": pa.array([["p"], []], pa.large_list(pa.string_view())),
            "nothing": pa.nulls(2),
            "either": union,
            "inner": pa.array([{"k": 1}, None]),
        }
    )
    corpus = open_corpus(table)
    types = {field.name: field.type for field in corpus.metadata_schema}
    assert types["category"] == types["nothing"] == types["either"] == pa.string()
    assert types["tags"] == pa.list_(pa.string())
    assert types["inner"] == pa.struct([("k", pa.int64())])
    first, second = documents(corpus)
    assert (first["category"], first["tags"], first["inner"]) == ("x", ["p"], {"k": 1})
    assert (second["either"], second["nothing"]) == ("b", None)
    pyarrow.parquet.write_table(pa.Table.from_batches(corpus.batches()), tmp_path / "out.parquet")


def test_files_that_disagree_on_a_type_become_strings(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "x": [{"k": 1}]}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pa.table({"text": ["b"], "x": ["s"]}), tmp_path / "b.parquet")
    json_lines(tmp_path / "c.jsonl", [{"text": "c", "x": 7}])
    assert [row["x"] for row in documents(open_corpus(tmp_path))] == ['{"k": 1}', "s", "7"]


def test_tokens_and_messages() -> None:
    corpus = open_corpus([{"ids": [1, 2]}, {"ids": []}, {"ids": None}], tokens_column="ids")
    assert corpus.schema.field("tokens").type == pa.list_(pa.int32())
    assert [row["tokens"] for row in documents(corpus)] == [[1, 2], []]
    table = pa.table({"ids": pa.array([[1, 2]], pa.large_list(pa.uint16()))})
    assert documents(open_corpus(table, tokens_column="ids"))[0]["tokens"] == [1, 2]

    chat = [{"role": "user", "content": "hi", "extra": 1}]
    for source in ([{"chat": chat}], pa.table({"chat": [chat]})):
        corpus = open_corpus(source, messages_column="chat")
        assert [json.loads(message) for message in documents(corpus)[0]["messages"]] == chat


def test_a_message_of_a_typed_column_has_what_it_had() -> None:
    """The rows of a column of structs have all fields of all of them."""
    calls = [{"arguments": {"city": "Rome"}}, {"arguments": {"n": 1}}]
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": None},
    ]
    corpus = open_corpus(pa.table({"chat": [chat]}), messages_column="chat")
    messages = [json.loads(message) for message in documents(corpus)[0]["messages"]]
    assert messages == [*chat[:2], {"role": "tool"}]


def test_the_fingerprint_follows_content_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("a")
    (tmp_path / "one" / "b.txt").write_text("b")
    before = open_corpus(tmp_path / "one").fingerprint()
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_corpus(tmp_path / "two").fingerprint() == before
    assert len(before) == 64
    # The boundary between files counts.
    (tmp_path / "two" / "a.txt").write_text("ab")
    (tmp_path / "two" / "b.txt").write_text("")
    assert open_corpus(tmp_path / "two").fingerprint() != before


def test_describe_names_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    WRITERS["c.jsonl"](path)
    described = open_corpus(path).describe()
    assert "1 JSON Lines; 3 rows" in described
    assert "year int64" in described


@pytest.mark.parametrize("batch_rows", [1, 7, 1024, 5000])
def test_batches_have_the_size_asked_for_and_the_same_rows(tmp_path: Path, batch_rows: int) -> None:
    rows = [{"text": f"t{i}", "i": i} for i in range(3000)]
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    json_lines(tmp_path / "b.jsonl", rows)
    corpus = open_corpus(tmp_path)
    sizes = [batch.num_rows for batch in corpus.batches(batch_rows)]
    assert sizes[:-1] == [batch_rows] * (len(sizes) - 1)
    assert sum(sizes) == 6000
    assert [row["i"] for row in documents(corpus, batch_rows)] == [*range(3000), *range(3000)]


@pytest.mark.parametrize(
    "name", ["long.jsonl", "long.json", "long.csv", "long.txt", "long.parquet"]
)
def test_a_document_of_fifty_megabytes(tmp_path: Path, name: str) -> None:
    path, text = tmp_path / name, "many words " * 4_600_000
    if name.endswith("txt"):
        path.write_text(text)
    elif name.endswith("csv"):
        path.write_text(f'n,text\n1,short\n2,"{text}"\n3,short\n')
    elif name.endswith("parquet"):
        table = pa.table({"text": ["short", text, "short"]})
        pyarrow.parquet.write_table(table, path)
    else:
        rows = [{"text": "short"}, {"text": text}, {"text": "short"}]
        path.write_text(
            json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
        )
    batches = list(open_corpus(path).batches())
    lengths = [len(str(value)) for batch in batches for value in batch.column("text")]
    assert lengths == ([len(text)] if name.endswith("txt") else [5, len(text), 5])
    assert all(batch.nbytes <= BATCH_BYTES or batch.num_rows == 1 for batch in batches)


def test_the_copy_of_a_generator_goes_with_the_corpus() -> None:
    corpus = open_corpus(iter(["x"] * 100))
    path = corpus._parts[0].path  # type: ignore[attr-defined]
    assert path.exists()
    del corpus
    assert not path.parent.exists()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"text": st.text(st.characters(codec="utf-8"))}, optional={"x": JSON_VALUES}
        ),
        min_size=1,
        max_size=8,
    ),
    piece=st.sampled_from([2, 3, 7, 64]),
    indent=st.sampled_from([None, 1]),
)
def test_json_of_any_kind_reads_alike(
    tmp_path: Path, rows: list[dict[str, Any]], piece: int, indent: int | None
) -> None:
    """JSON Lines, an array and values one after another, the latter two in pieces of any size."""
    lines = json_lines(tmp_path / "a.jsonl", rows)
    array, stream = tmp_path / "b.json", tmp_path / "c.json"
    array.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    stream.write_text("\n".join(json.dumps(row, indent=indent) for row in rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.corpus.stream.CHUNK_BYTES", piece)
        tables = [
            pa.Table.from_batches(open_corpus(path).batches()).drop_columns(
                ["source", "source_offset"]
            )
            for path in (lines, array, stream)
        ]
    assert tables[0].column("text").to_pylist() == [row["text"] for row in rows]
    assert tables[0] == tables[1] == tables[2]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            *[st.text(st.characters(codec="utf-8", exclude_characters="\0\r")) for _ in range(2)]
        ),
        min_size=1,
        max_size=6,
    )
)
def test_csv_keeps_every_text(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "c.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "x"])
        writer.writerows(rows)
    corpus = open_corpus(path)
    assert texts(corpus) == [text for text, _ in rows]
    if corpus.metadata_schema.field("x").type == pa.string():
        assert [row["x"] for row in documents(corpus)] == [other for _, other in rows]
