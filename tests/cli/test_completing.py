"""Completion in a shell, through the protocol that the printed script speaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.make_store import make_store
from tests.queries.test_questions import small_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completing")
    make_store(folder / "one.fdb", small_world(("demo",)))
    make_store(folder / "two.fdb", small_world(("a", "b/c")))
    return folder


_RUN = "from featuredb.cli import main; main(prog_name='featuredb')"
"""The script names the program as the shell does."""


def run(folder: Path, *arguments: str, **variables: str) -> str:
    """Standard output of `featuredb` run in `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **variables}
    command = [sys.executable, "-c", _RUN, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


def offered(folder: Path, line: str) -> list[str]:
    """What bash gets for the last word of the line, as ``type,value``."""
    protocol = {
        "_FEATUREDB_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    return run(folder, **protocol).split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("featuredb ver", ["plain,verify"]),
        ("featuredb top on", ["file,on"]),
        ("featuredb push ./o", ["file,./o"]),
        ("featuredb ingest new.fdb --corpus te", ["file,te"]),
        ("featuredb ingest new.fdb --sae sa", ["file,sa"]),
        ("featuredb top one.fdb 3 -o x", ["file,x"]),
        ("featuredb top one.fdb 3", ["plain,3"]),
        ("featuredb feature two.fdb b", ["plain,b/c/"]),
        ("featuredb near two.fdb b/c/2", ["plain,b/c/2"]),
        ("featuredb near two.fdb --sae ", ["plain,a", "plain,b/c"]),
        ("featuredb top missing.fdb 3", []),
        ("featuredb near two.fdb b/", ["plain,b/c/"]),
        ("featuredb find one.fdb --where (top", ["plain,(topic"]),
        ("featuredb top one.fdb --where n_tokens>3ANDrol", []),
        ("featuredb top one.fdb --where n_tokens<3,rol", ["plain,n_tokens<3,role"]),
    ],
)
def test_what_is_offered(folder: Path, line: str, expected: list[str]) -> None:
    assert offered(folder, line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(folder: Path, shell: str) -> None:
    script = run(folder, "completion", shell)
    assert f"_FEATUREDB_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
