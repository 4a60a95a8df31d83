"""Bad input, end to end: one clear error, and nothing left behind or something resumable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import featuredb
from featuredb.errors import (
    DatabaseNotReadyError,
    FeatureDBError,
    IngestError,
    ModelError,
    PlanMismatchError,
    StorageError,
)
from ingest import prepare
from ingest.extract import forward as extract
from ingest.extract import pipeline
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from tests.content import activations, assert_same_content
from tests.ingest.bad import CASES, Told, good
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

LONG = bool(os.environ.get("FEATUREDB_LONG"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_jsonl(folder / "corpus.jsonl", tiny_documents())
    tiny_model(folder / "model")
    tiny_sae(folder / "sae")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "inputs"))


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line_and_nothing_is_left(folder: Path, tmp_path: Path, case: str) -> None:
    bad = CASES[case]
    told = good(folder) | bad.change(folder)
    path = tmp_path / "new" / "deeper" / "db.fdb"
    with pytest.raises(bad.error) as caught:
        featuredb.ingest(path, **told)
    message = str(caught.value)
    assert "\n" not in message
    for part in bad.named:
        assert part in message
    assert not (tmp_path / "new").exists()
    assert not (folder / "ran").exists()


def test_null_rows_are_left_out_and_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(folder / "corpus.jsonl", [{"text": " river"}, {"text": None}, {"text": " king"}])
    featuredb.ingest(tmp_path / "db.fdb", progress=True, **good(folder))
    assert "1 rows of" in capsys.readouterr().err
    with featuredb.open(tmp_path / "db.fdb") as db:
        assert [r[0] for r in db.sql("SELECT source_offset FROM documents").fetchall()] == [0, 2]


@pytest.mark.parametrize("size", [50_000_000 if LONG else 2_000_000])
def test_one_huge_document(folder: Path, tmp_path: Path, size: int) -> None:
    """The whole document is tokenized and cut. The model runs on as much as time allows."""
    words = " river bridge stone water tower music paint planet"
    (folder / "huge.txt").write_text(words * (size // len(words)))
    told = good(folder) | {"corpus": str(folder / "huge.txt"), "context_size": 128}
    path = tmp_path / "db.fdb"
    featuredb.ingest(path, **told)
    with featuredb.open(path) as db:
        (corpus,) = db.snapshot.corpora
        assert corpus.n_documents == 1
        assert corpus.n_tokens >= size // len(words) * 8
        assert corpus.n_contexts == -(-corpus.n_tokens // 127)


def _stopped(
    path: Path, options: IngestOptions, monkeypatch: pytest.MonkeyPatch, batches: int = 1
) -> None:
    """Begin an ingest and stop it after `batches` batches."""
    run_batch, calls = extract.run_batch, 0

    def stopping(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise KeyboardInterrupt
        return run_batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "partition_tokens", lambda *_: 400)
        patch.setattr(pipeline, "run_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            ingest(path, options)


def _changed_corpus(folder: Path) -> Told:
    write_jsonl(folder / "corpus.jsonl", tiny_documents(61))
    return {}


def _changed_sae(folder: Path) -> Told:
    tiny_sae(folder / "sae", seed=9)
    return {}


def _changed_model(folder: Path) -> Told:
    tiny_model(folder / "model", seed=9)
    return {}


@pytest.mark.parametrize(
    ("change", "what", "is_hash"),
    [
        (_changed_corpus, "corpus content", True),
        (_changed_sae, "SAE sae", True),
        (_changed_model, "model weights", True),
        (lambda _: {"context_size": 16}, "context size", False),
        (lambda _: {"stride": 8}, "stride", False),
        (lambda _: {"max_tokens": 99}, "max tokens", False),
        (lambda _: {"hook": "blocks.0.hook_resid_post"}, "SAE sae", True),
        (lambda _: {"keep_sinks": True}, "keep sinks", False),
    ],
)
def test_resuming_with_something_else_names_both(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    what: str,
    is_hash: bool,
) -> None:
    options = IngestOptions(**good(folder))
    path = tmp_path / "db.fdb"
    _stopped(path, options, monkeypatch)
    before = sorted(p.name for p in path.rglob("*"))
    told = change(folder)
    with pytest.raises(PlanMismatchError) as caught:
        ingest(path, replace(options, **told))
    message = str(caught.value)
    was, _, now = message.partition(f"{what} was ")[2].partition(", is now ")
    assert was
    assert now
    if is_hash:
        assert len(was.split()[0]) == 64
        assert was != now.split(";")[0].split(")")[0]
    assert sorted(p.name for p in path.rglob("*")) == before


def test_not_a_number_halfway_stores_nothing_of_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what the load check sees: the model goes wrong in the second partition."""
    options = IngestOptions(**good(folder))
    whole, path = tmp_path / "whole.fdb", tmp_path / "db.fdb"
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 400)
    ingest(whole, options)
    forward, calls = extract.forward, 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        states = forward(*args)
        return {k: v * float("nan") for k, v in states.items()} if calls > 1 else states

    with monkeypatch.context() as patch:
        patch.setattr(extract, "forward", broken)
        with pytest.raises(ModelError, match="NaN or infinite values at blocks"):
            ingest(path, options)
    with pytest.raises(DatabaseNotReadyError, match="run the same"):
        featuredb.open(path)
    ingest(path, options)
    assert_same_content(path, whole)


def test_a_folder_with_other_things_in_it_is_left_alone(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    (path / "corpus").mkdir(parents=True)
    (path / "corpus" / "thesis.txt").write_text("years of work")
    with pytest.raises(IngestError, match=r"not a featuredb database and not empty \(corpus\)"):
        featuredb.ingest(path, **good(folder))
    assert [p.name for p in path.rglob("*")] == ["corpus", "thesis.txt"]


def test_a_file_where_the_database_should_be(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "db.fdb").write_text("a file")
    with pytest.raises(StorageError, match="is a file"):
        featuredb.ingest(tmp_path / "db.fdb", **good(folder))


def test_an_empty_folder_stays_when_the_ingest_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    path.mkdir()
    (folder / "corpus.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(FeatureDBError):
        featuredb.ingest(path, **good(folder))
    assert list(path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """Mounts a file system of a given size, where this user may."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int, *more: str) -> Path:
        options = ",".join([f"size={size}", *more])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
                              capture_output=True)  # fmt: skip
        if done.returncode:
            pytest.skip("only root can mount a small file system")
        return place

    yield mount
    # Lazily: a memory map that is still open must not keep the file system mounted.
    subprocess.run(["umount", "--lazy", place], capture_output=True)


def _grow(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


@pytest.mark.parametrize("size", [40_000, 120_000, 200_000, 320_000, 600_000, 800_000])
def test_a_full_disk_says_so_and_the_ingest_goes_on_after(
    folder: Path, tmp_path: Path, small_disk: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 400)
    options = IngestOptions(**good(folder))
    ingest(tmp_path / "whole.fdb", options)
    place = small_disk(size)
    path = place / "db.fdb"
    with pytest.raises(StorageError, match="no space left on the disk") as caught:
        ingest(path, options)
    assert "\n" not in str(caught.value)
    assert not path.exists() or (path / "staging" / "plan.json").exists()
    with pytest.raises(FeatureDBError):
        featuredb.open(path)
    _grow(place, 100_000_000)
    ingest(path, options)
    assert_same_content(path, tmp_path / "whole.fdb")


def test_a_read_only_file_system(folder: Path, small_disk: Any) -> None:
    place = small_disk(1_000_000, "ro")
    with pytest.raises(StorageError, match="no permission to write"):
        featuredb.ingest(place / "db.fdb", **good(folder))


_LIMITED = """
import resource, sys
from pathlib import Path
import featuredb
from tests.ingest.bad import good
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    featuredb.ingest(sys.argv[2], **good(Path(sys.argv[1])))
except featuredb.FeatureDBError as error:
    print(type(error).__name__, error)
"""


def test_a_limit_on_the_size_of_files_is_a_full_disk(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(folder), str(tmp_path / "db.fdb")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.startswith("StorageError no space left on the disk"), done.stderr
    path = tmp_path / "db.fdb"
    assert not path.exists() or (path / "staging" / "plan.json").exists()
    featuredb.ingest(path, **good(folder))


def test_activations_beyond_float16(folder: Path, tmp_path: Path) -> None:
    tiny_sae(folder / "sae", scale=3e6)
    featuredb.ingest(tmp_path / "db.fdb", **good(folder))
    values = activations(tmp_path / "db.fdb", "sae").column("activation").to_numpy()
    assert values.max() > 65_504
