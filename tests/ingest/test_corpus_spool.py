"""Read-once inputs are spooled to a temporary folder, which is cleaned up."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from featuredb.errors import CorpusError
from ingest.corpus import CorpusReader, open_corpus

_LEAVE = """
import os, signal, sys
from ingest.corpus import open_corpus
corpus = open_corpus("-")
print(sum(batch.num_rows for batch in corpus.batches()), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def ended(how: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", _LEAVE, how], input="a text\n", capture_output=True, text=True
    )
    return ran.stdout


def test_only_what_can_be_read_once_gets_a_folder(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    of_a_file = open_corpus(tmp_path / "a.txt")
    assert not list(temporary.iterdir())
    of_python = open_corpus(["a", "b"])
    (folder,) = temporary.iterdir()
    assert rows_of(of_python) == 2
    assert rows_of(of_a_file) == 1
    del of_python
    gc.collect()
    assert not list(temporary.iterdir()), folder


def rows_of(corpus: CorpusReader) -> int:
    return sum(batch.num_rows for batch in corpus.batches())


def test_a_corpus_that_is_refused_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(CorpusError, match="standard input is empty"):
        open_corpus("-")
    with pytest.raises(CorpusError, match="document 1 is a int"):
        open_corpus(["a", 1])
    assert not list(temporary.iterdir())


def test_a_process_that_ends_leaves_nothing_and_one_that_is_killed_is_cleaned_up_after(
    temporary: Path,
) -> None:
    assert ended("by itself") == "1\n"
    assert not list(temporary.iterdir())
    assert ended("killed") == "1\n"
    (left,) = temporary.iterdir()
    living = open_corpus(["a"])
    (own,) = set(temporary.iterdir()) - {left}
    # Too young: its process may not have locked it yet.
    assert left.exists()
    for folder in (left, own):
        os.utime(folder, (time.time() - 3_600,) * 2)
    other = open_corpus(["b"])
    assert not left.exists()
    assert own.exists()
    assert rows_of(living) == rows_of(other) == 1
