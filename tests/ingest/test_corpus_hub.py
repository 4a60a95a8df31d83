"""Data sets of the hub, through the real `datasets` library over files on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featuredb.errors import CorpusError, MissingExtraError
from ingest.corpus import open_corpus

datasets = pytest.importorskip("datasets")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library was asked for; it answers with a file of 3,000 rows."""
    path = tmp_path / "data.jsonl"
    rows = [{"text": None if i == 5 else f"t{i}", "tags": [str(i)]} for i in range(3000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    calls: list[Any] = []
    load = datasets.load_dataset

    def fake(name: str, config: str | None, *, split: str, streaming: bool, revision: str) -> Any:
        assert streaming
        calls.append((name, config, split, revision))
        if config == "absent":
            raise ValueError("BuilderConfig 'absent' not found.\nAvailable: ['a']")
        return load(
            "json",
            data_files={"train": str(path)},
            split="train",
            streaming=True,
            cache_dir=str(tmp_path / "cache"),
        )

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr("ingest.corpus.hub._revision", lambda path: f"commit-of-{path}")
    return calls


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("hf:owner/data", ("owner/data", None, "train")),
        ("hf:owner/data:2024.en", ("owner/data", "2024.en", "train")),
        ("hf:data@test", ("data", None, "test")),
        ("hf:owner/data:en@train[:10]", ("owner/data", "en", "train[:10]")),
    ],
)
def test_a_data_set_is_streamed_at_one_revision(
    asked: list[Any], source: str, call: tuple[Any, ...]
) -> None:
    corpus = open_corpus(source)
    table = pa.Table.from_batches(corpus.batches())
    assert table.num_rows == 2999
    assert corpus.skipped_null == 1
    assert table.column("source_offset").to_pylist() == [*range(5), *range(6, 3000)]
    assert table.column("text")[-1].as_py() == "t2999"
    assert table.schema.field("tags").type == pa.list_(pa.string())
    assert set(table.column("source").to_pylist()) == {source}
    assert set(asked) == {(*call, f"commit-of-{call[0]}")}
    assert corpus.rows is None
    assert "rows unknown" in corpus.describe()


def test_the_fingerprint_is_of_the_revision(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_corpus("hf:owner/data").fingerprint()
    assert open_corpus("hf:owner/data@train").fingerprint() == before
    assert open_corpus("hf:owner/data@test").fingerprint() != before
    monkeypatch.setattr("ingest.corpus.hub._revision", lambda path: "a later commit")
    assert open_corpus("hf:owner/data").fingerprint() != before


@pytest.mark.usefixtures("asked")
def test_errors_of_the_library_become_one_line() -> None:
    with pytest.raises(CorpusError, match=r"cannot read hf:d:absent: BuilderConfig 'absent' not f"):
        open_corpus("hf:d:absent")
    with pytest.raises(CorpusError, match="no column 'body'; it has text, tags"):
        open_corpus("hf:d", text_column="body")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"install featuredb\[hub\]"):
        open_corpus("hf:owner/data")
