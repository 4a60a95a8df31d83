"""Writing in one step: the state after a crash or a full disk."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featuredb.errors import StorageError
from featuredb.store.files.atomic import (
    folder_in_place,
    output_in_place,
    refusal,
    remove_tree,
    sha256_of,
    sweep,
    write_atomically,
)


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "CURRENT"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        write_atomically(path, b"three")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["CURRENT"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "segments" / "s"

    def stopped_half_way() -> None:
        with folder_in_place(final) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped_half_way()
    assert os.listdir(final.parent) == []
    with folder_in_place(final) as folder:
        (folder / "fm").mkdir()
        (folder / "fm" / "whole").write_text("x")
        assert not final.exists()
    assert (final / "fm" / "whole").read_text() == "x"


def test_removing_and_sweeping(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    (tmp_path / "f").write_text("x")
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "f")
    remove_tree(tmp_path / "never there")
    (tmp_path / ".s.1234.tmp").mkdir()
    (tmp_path / ".t.1234.tmp").write_text("half")
    (tmp_path / "kept.tmp").write_text("a user's own")
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["kept.tmp"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left"),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left"), "no space"),
        (OSError(errno.EROFS, "Read-only file system"), "no permission to write"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to write"),
    ],
)
def test_refusals_of_the_file_system_become_one_clear_line(error: OSError, words: str) -> None:
    refused = refusal(error, Path("x.fdb"))
    assert refused is not None
    assert words in str(refused)
    assert "\n" not in str(refused)


def test_other_errors_are_not_taken_for_refusals() -> None:
    assert refusal(OSError(errno.EIO, "Input/output error"), Path("x")) is None


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == want


def test_an_output_through_a_link_leaves_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with output_in_place(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert {each.name for each in tmp_path.iterdir()} == {"real", "link"}


def test_an_output_that_is_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        with output_in_place(pipe) as temporary:
            temporary.write_text("through")
        assert read.result() == "through"
    assert pipe.is_fifo()
