"""Folders as data sets come: saved, cloned, exported in partitions; and paths spelled any way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus

TEXTS = ["a", "b", "c"]
TABLE = pa.table({"text": TEXTS, "n": [1, 2, 3]})


def documents(source: Any, **options: Any) -> list[dict[str, Any]]:
    corpus = open_corpus(source, **options)
    return [row for batch in corpus.batches() for row in batch.to_pylist()]


def texts(source: Any) -> list[str]:
    return [row["text"] for row in documents(source)]


def put(path: Path, content: str | bytes | pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_clone_of_the_hub(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train-00000-of-00001.parquet", TABLE)
    for name in ("README.md", "LICENSE.txt", "CITATION.txt", "Data-Card.md", "docs/README_zh.md"):
        put(tmp_path / name, "not a document")
    put(tmp_path / "dataset_infos.json", json.dumps({"default": {"features": {}}}))
    put(tmp_path / ".gitattributes", "*.parquet filter=lfs")
    put(tmp_path / ".git" / "config.txt", "not a document")
    put(tmp_path / "load.py", "print()")
    assert texts(tmp_path) == TEXTS


def test_texts_that_are_all_there_is_are_documents(tmp_path: Path) -> None:
    put(tmp_path / "README.md", "read me")
    put(tmp_path / "a.txt", "a")
    assert texts(tmp_path) == ["read me", "a"]


def test_shards_of_tokens_beside_their_description(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", pa.table({"input_ids": [[5, 6]]}))
    put(tmp_path / "sae_lens.json", json.dumps({"context_size": 2}))
    assert [row["tokens"] for row in documents(tmp_path, tokens_column="input_ids")] == [[5, 6]]


def test_what_datasets_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict(TABLE.to_pydict())
    saved.save_to_disk(tmp_path / "one")
    # What `map` leaves beside the data is no data.
    saved.map(lambda row: row, cache_file_name=str(tmp_path / "one" / "cache-0123.arrow"))
    assert texts(tmp_path / "one") == TEXTS
    saved.save_to_disk(tmp_path / "shards", num_shards=3)
    assert texts(tmp_path / "shards") == TEXTS
    saved.select([2, 0]).save_to_disk(tmp_path / "selected")
    assert texts(tmp_path / "selected") == ["c", "a"]
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "splits")
    rows = documents(tmp_path / "splits")
    assert [row["text"] for row in rows] == TEXTS * 2
    assert [row["source"].split("/")[0] for row in rows] == ["test"] * 3 + ["train"] * 3
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    put(tmp_path / "one" / "state.json", json.dumps(state))
    with pytest.raises(CorpusError, match="a selection of its rows apart"):
        open_corpus(tmp_path / "one")


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.txt", "c.csv"])
def test_a_pointer_of_git_is_no_document(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CorpusError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        open_corpus(tmp_path)


def test_partitions_are_columns(tmp_path: Path) -> None:
    languages = ["en", "de", None] * 4
    years = [2020, 2021, 2020, 2021] * 3
    table = pa.table({"text": [str(i) for i in range(12)], "lang": languages, "year": years})
    pq.write_to_dataset(table, tmp_path / "d", partition_cols=["lang", "year"])
    expected = dict(zip(table["text"].to_pylist(), zip(languages, years, strict=True), strict=True))
    for source in (tmp_path / "d", f"{tmp_path}/d/*/*/*.parquet", f"{tmp_path}/d/**/*.parquet"):
        corpus = open_corpus(source)
        assert corpus.metadata_schema.field("year").type == pa.int64()
        found = {row["text"]: (row["lang"], row["year"]) for row in documents(source)}
        assert found == expected


@pytest.mark.parametrize(
    ("folder", "name", "value"),
    [
        ("lang=en", "lang", "en"),
        ("_lang=en", "_lang", "en"),
        ("month=01", "month", "01"),
        ("share=0.5", "share", 0.5),
        ("day=2024-01-31", "day", "2024-01-31"),
        ("q=a%2Fb%20c", "q", "a/b c"),
        ("eq=a=b", "eq", "a=b"),
        ("source=web", "source_", "web"),
        ("flag=true", "flag", True),
        ("none=__HIVE_DEFAULT_PARTITION__", "none", None),
    ],
)
@pytest.mark.parametrize("file", ["a.jsonl", "a.txt", "a.csv", "a.parquet"])
def test_a_partition_of_any_kind(
    tmp_path: Path, file: str, folder: str, name: str, value: object
) -> None:
    contents = {
        "a.jsonl": '{"text": "a"}\n',
        "a.txt": "a",
        "a.csv": "text,n\na,1\n",
        "a.parquet": TABLE.slice(0, 1),
    }
    put(tmp_path / folder / file, contents[file])
    (row,) = documents(tmp_path)
    assert (row["text"], row[name]) == ("a", value)


def test_a_file_that_has_the_column_keeps_its_own(tmp_path: Path) -> None:
    put(tmp_path / "n=7" / "a.parquet", TABLE)
    put(tmp_path / "n=8" / "b.txt", "d")
    assert [row["n"] for row in documents(tmp_path)] == [1, 2, 3, 8]


def test_a_partition_is_content(tmp_path: Path) -> None:
    put(tmp_path / "one" / "n=7" / "a.txt", "a")
    put(tmp_path / "two" / "n=8" / "a.txt", "a")
    put(tmp_path / "three" / "a.txt", "a")
    found = {open_corpus(tmp_path / name).fingerprint() for name in ("one", "two", "three")}
    assert len(found) == 3


def test_what_spark_leaves_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "k=1" / "part-0000-c000.snappy.parquet", TABLE)
    for name in ("_SUCCESS", "_notes.txt", ".part-0000.parquet.crc", "._a.txt"):
        put(tmp_path / name, b"\0")
    put(tmp_path / "_temporary" / "a.txt", "not a document")
    put(tmp_path / "_delta_log" / "0.json", "{}")
    put(tmp_path / ".ipynb_checkpoints" / "a.txt", "not a document")
    assert texts(tmp_path) == TEXTS


def test_links_are_followed_and_one_to_nothing_is_told(tmp_path: Path) -> None:
    put(tmp_path / "blobs" / "b", b"b")
    put(tmp_path / "elsewhere" / "c.txt", b"c")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "b.txt").symlink_to(tmp_path / "blobs" / "b")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert texts(folder) == ["b", "c"]
    (tmp_path / "same").symlink_to(folder)
    assert open_corpus(tmp_path / "same").fingerprint() == open_corpus(folder).fingerprint()
    (folder / "d.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"d\.txt is a link to nothing"):
        open_corpus(folder)


def test_one_corpus_spelled_many_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a folder"
    put(folder / "c.jsonl", '{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(folder / "c.jsonl")
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = [
        "c.jsonl",
        "./c.jsonl",
        "../a folder/c.jsonl",
        str(folder / "c.jsonl"),
        str(tmp_path / "link.jsonl"),
        "~/a folder/c.jsonl",
        (folder / "c.jsonl").as_uri(),
        "file://localhost" + (folder / "c.jsonl").as_uri().removeprefix("file://"),
        "*.jsonl",
        "~/a*/c.jsonl",
        ".",
        str(folder) + os.sep,
        str(tmp_path / "linked"),
        "~/a folder",
        folder.as_uri(),
        ["c.jsonl"],
        [Path("c.jsonl")],
    ]
    found = {str(source): open_corpus(source).fingerprint() for source in spellings}
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("url", ["https://host/c.jsonl", "s3://bucket/c", "file://host/c.jsonl"])
def test_other_urls_are_refused(url: str) -> None:
    scheme = url.split(":")[0]
    with pytest.raises(CorpusError, match=f"a corpus is not read from {scheme}://; download it"):
        open_corpus(url)
