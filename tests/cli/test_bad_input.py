"""Bad input on the command line: an exit code, one line that names it, and no traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from featuredb.cli import main
from featuredb.cli.exit_codes import ExitCode
from featuredb.store.files.lock import write_lock
from featuredb.store.layout import Layout
from tests.ingest.bad import CASES, Told, good
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_jsonl(folder / "corpus.jsonl", tiny_documents(20))
    tiny_model(folder / "model")
    tiny_sae(folder / "sae")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "inputs"))


@pytest.fixture(scope="module")
def database(made: Path) -> Path:
    path = made / "db.fdb"
    assert run("ingest", str(path), *flags(good(made))).exit_code == 0
    return path


def flags(told: Told) -> list[str]:
    """The options of `featuredb.ingest` as the command line spells them."""
    spelled = []
    for name, value in told.items():
        if name in ("saes", "names"):
            spelled += [part for each in value for part in (f"--{name[:-1]}", each)]
        elif name == "check":
            spelled += [] if value else ["--no-check"]
        elif isinstance(value, bool):
            spelled += [f"--{name.replace('_', '-')}"] if value else []
        else:
            spelled += [f"--{name.replace('_', '-')}", str(value)]
    return spelled


def run(*call: str) -> Result:
    return CliRunner().invoke(main, call, catch_exceptions=False)


def refused(result: Result, code: int) -> str:
    """The line of an error, which comes last, after any progress messages."""
    assert result.exit_code == code
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("featuredb: ")] == lines[-1:]
    assert "Traceback" not in result.stderr
    return lines[-1]


@pytest.mark.parametrize("case", CASES)
def test_an_ingest_that_is_refused(folder: Path, tmp_path: Path, case: str) -> None:
    bad = CASES[case]
    told = good(folder) | bad.change(folder)
    path = tmp_path / "db.fdb"
    line = refused(run("ingest", str(path), *flags(told)), bad.error.exit_code)
    for part in bad.named:
        assert part in line
    assert not path.exists()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("case", ["corpus missing", "pickle that runs code", "model gives NaN"])
def test_as_a_process(folder: Path, tmp_path: Path, case: str) -> None:
    """With warnings as errors, because no other line may be printed."""
    told = good(folder) | CASES[case].change(folder)
    call = [sys.executable, "-W", "error", "-m", "featuredb.cli", "ingest"]
    done = subprocess.run(
        [*call, str(tmp_path / "db.fdb"), *flags(told)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == ExitCode.INGEST
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("featuredb: ")
    progress = ("tokenizing ", "checking the load ")
    assert all(line.startswith(progress) for line in lines[:-1])
    assert not (tmp_path / "db.fdb").exists()


def test_another_ingest_into_a_finished_database(database: Path, folder: Path) -> None:
    before = sorted(database.rglob("*"))
    line = refused(run("ingest", str(database), *flags(good(folder)), "--exact"), 5)
    assert "already holds a database of other inputs" in line
    assert sorted(database.rglob("*")) == before


def test_an_ingest_while_another_one_writes(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    with write_lock(Layout(path), "a test"):
        line = refused(run("ingest", str(path), *flags(good(folder))), ExitCode.DATABASE)
    assert f"process {os.getpid()}" in line


_QUESTIONS = (["info"], ["top", "1"], ["sql", "SELECT 1"], ["near", "1"])


@pytest.mark.parametrize("question", _QUESTIONS, ids=" ".join)
def test_a_database_that_does_not_exist(tmp_path: Path, question: list[str]) -> None:
    verb, *rest = question
    line = refused(run(verb, str(tmp_path / "none.fdb"), *rest), ExitCode.DATABASE)
    assert "there is no database at" in line
    (tmp_path / "other").mkdir()
    line = refused(run(verb, str(tmp_path / "other"), *rest), ExitCode.DATABASE)
    assert "is not a featuredb database" in line


def test_a_database_whose_ingest_never_finished(tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    (path / "staging").mkdir(parents=True)
    for command in (("info",), ("vacuum", "--unfinished")):
        line = refused(run(command[0], str(path), *command[1:]), ExitCode.DATABASE)
        assert f"{path} holds an unfinished ingest and nothing to read yet: run" in line
        assert "run the same `featuredb ingest` again to continue it, or delete the folder" in line
    with write_lock(Layout(path), "ingest"):
        line = refused(run("info", str(path)), ExitCode.DATABASE)
        assert f"still being ingested by process {os.getpid()}" in line
        assert line.endswith("wait for it")
    assert "holds an unfinished ingest" in refused(run("info", str(path)), ExitCode.DATABASE)


def test_a_database_of_a_newer_format(database: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(database, tmp_path / "newer.fdb"))
    file = next((path / "snapshots").glob("*.json"))
    file.write_text(re.sub(r'"format": *\d+', '"format": 99', file.read_text(), count=1))
    (path / "CURRENT").write_text(f"{file.stem}\n")  # the checksum was of what it said before
    line = refused(run("info", str(path)), ExitCode.DATABASE)
    assert "has format 99" in line
    assert "upgrade featuredb" in line


@pytest.mark.parametrize("feature", ["96", "-1", "other/3", "x", "sae/96", "99999999999999999999"])
def test_an_unknown_feature_gives_the_range(database: Path, feature: str) -> None:
    line = refused(run("top", str(database), "--", feature), ExitCode.QUERY)
    assert "95" in line or "sae" in line


def test_sql_that_is_wrong_says_what_duckdb_says(database: Path) -> None:
    line = refused(run("sql", str(database), "SELECT x FROM activations"), ExitCode.QUERY)
    assert "Binder Error" in line
    assert "LINE" not in line
    line = refused(run("sql", str(database), "SELEC 1"), ExitCode.QUERY)
    assert "Parser Error" in line


@pytest.mark.parametrize("verb", ["fires", "sql"])
def test_standard_input_that_is_not_text(database: Path, verb: str) -> None:
    result = CliRunner().invoke(main, [verb, str(database), "-"], input=b"SELECT '\xff'")
    assert "is not UTF-8 text, at character 8" in refused(result, ExitCode.QUERY)


def test_a_search_without_words(database: Path) -> None:
    result = run("search", str(database), " ")
    assert result.exit_code == ExitCode.USAGE
    assert "there are no words in QUERY" in result.stderr


def test_no_permission_to_write(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere
        make = Path.mkdir

        def forbidden(path: Path, *args: Any, **more: Any) -> None:
            if closed in path.parents:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            make(path, *args, **more)

        monkeypatch.setattr(Path, "mkdir", forbidden)
    line = refused(run("ingest", str(closed / "db.fdb"), *flags(good(folder))), ExitCode.STORAGE)
    assert "no permission to write" in line
