"""Command line errors: one line on standard error, and the exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import featuredb
from featuredb import errors
from featuredb.cli.exit_codes import ExitCode
from featuredb.errors import FeatureDBError, SQLError
from tests.cli.conftest import Invoke
from tests.cli.fake import FakeDatabase
from tests.interrupts import interrupted


def _all_errors() -> list[type[FeatureDBError]]:
    found = [e for e in vars(errors).values() if isinstance(e, type)]
    return [e for e in found if issubclass(e, FeatureDBError)]


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_one_line_and_its_own_code(
    invoke: Invoke, database: FakeDatabase, kind: type[FeatureDBError]
) -> None:
    database.error = kind("what was wrong\nwhat to do \x1b[31mabout it")
    result = invoke("near", "db", "1")
    assert result.exit_code == kind.exit_code
    assert result.stdout == ""
    assert result.stderr == "featuredb: what was wrong what to do ␛[31mabout it\n"
    assert ExitCode(kind.exit_code).meaning


def test_codes_and_classes_agree() -> None:
    assert {
        ExitCode.ERROR: FeatureDBError.exit_code,
        ExitCode.DATABASE: errors.DatabaseError.exit_code,
        ExitCode.QUERY: errors.QueryError.exit_code,
        ExitCode.INGEST: errors.IngestError.exit_code,
        ExitCode.STORAGE: errors.StorageError.exit_code,
        ExitCode.MISSING_EXTRA: errors.MissingExtraError.exit_code,
    } == {code: code.value for code in ExitCode if code in range(1, 8) and code != ExitCode.USAGE}


def test_sql_errors_leave_out_the_caret(invoke: Invoke, database: FakeDatabase) -> None:
    database.error = SQLError('Binder Error: no "x"\n\nLINE 1: SELECT x\n               ^')
    assert invoke("sql", "db", "SELECT x").stderr == 'featuredb: Binder Error: no "x"\n'


def test_sql_that_fails_while_running_is_a_query_error(invoke: Invoke) -> None:
    result = invoke("sql", "db", "SELECT CAST(concat('a', range) AS INT) FROM range(3)")
    assert result.exit_code == ExitCode.QUERY
    assert result.stderr.startswith("featuredb: Conversion Error")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_refusing_file_system_is_a_storage_error(
    invoke: Invoke, database: FakeDatabase, number: int
) -> None:
    database.error = OSError(number, os.strerror(number), "/data/x")
    result = invoke("info", "db")
    assert result.exit_code == ExitCode.STORAGE
    assert result.stderr == f"featuredb: /data/x: {os.strerror(number)}\n"


def test_an_output_file_that_cannot_be_written_is_a_storage_error(invoke: Invoke) -> None:
    result = invoke("info", "db", "-o", "no/such/folder/x.json")
    assert result.exit_code == ExitCode.STORAGE
    assert result.stderr == (
        "featuredb: cannot write no/such/folder/x.json: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tpo", "db"), "No such command 'tpo'. Did you mean top?"),
        (("serach", "db", "x"), "No such command 'serach'. Did you mean search or steer or serve?"),
        (("help",), "No such command 'help'. See featuredb --help."),
        (
            ("top", "db", "5", "--max", "3"),
            "No such option '--max'. Did you mean --max-activation?",
        ),
        (
            ("top", "db", "5", "--formt", "csv"),
            "No such option '--formt'. Did you mean '--format'?",
        ),
        (("top", "db", "-5"), "-5 is not a feature: they are numbered from 0"),
        (("label", "db", "-5", "x"), "-5 is not a feature: they are numbered from 0"),
        (("search", "db", "-5"), "-5 is read as an option: write -- before it"),
        (
            ("search", "db", "x", "--encoder", "m"),
            "only --by meaning has an encoder",
        ),
        (("label", "db", "5", "x", "--vote", "1", "--model", "m"), "leave out --model"),
        (("labels", "export", "db", "-", "--to", "csv"), "for standard output write /dev/stdout"),
        (("top", "db", "5", "-o", "out.xlsx"), "no format is known by the ending of out.xlsx"),
    ],
)
def test_what_was_mistyped_gets_a_suggestion(
    invoke: Invoke, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert said in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.txt", "a.b/out", "/dev/null"])
def test_a_table_in_a_file(invoke: Invoke, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.b").mkdir()
    assert invoke("top", "db", "5", "-o", name).exit_code == 0


def test_an_interrupt_is_one_line(
    invoke: Invoke, database: FakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.error = KeyboardInterrupt()
    result = invoke("info", "db")
    assert (result.exit_code, result.stderr) == (130, "featuredb: interrupted\n")

    def interrupted(path: str, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(featuredb, "ingest", interrupted, raising=False)
    result = invoke("ingest", "db", "--corpus", "c", "--model", "m", "--sae", "s")
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr


def test_what_nobody_foresaw_keeps_its_traceback(invoke: Invoke, database: FakeDatabase) -> None:
    database.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        invoke("info", "db")


@pytest.mark.parametrize(
    "call",
    [
        ("fires", "db"),
        ("fires", "db", "text", "--context", "1"),
        ("near", "db"),
        ("near", "db", "1", "-k", "0"),
        ("near", "db", "1", "--by", "taste"),
        ("near", "db", "1", "--format", "xml"),
        ("sql", "db", " "),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense(
    invoke: Invoke, database: FakeDatabase, call: tuple[str, ...]
) -> None:
    result = invoke(*call)
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    assert database.asked == []


def test_parquet_is_not_shown_to_a_terminal(
    invoke: Invoke, database: FakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import _NamedTextIOWrapper

    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda self: True, raising=False)
    result = invoke("near", "db", "1", "--format", "parquet")
    assert result.exit_code == ExitCode.USAGE
    assert "-o FILE" in result.stderr
    assert database.asked == []
    assert invoke("near", "db", "1", "--format", "parquet", "-o", "x.parquet").exit_code == 0


_TO_A_CLOSED_PIPE = """
import featuredb
from tests.cli.fake import FakeDatabase
featuredb.open = lambda path, **_: FakeDatabase()
from featuredb.cli import main
main(["sql", "db", "SELECT repeat('x', 20_000_000) AS line", "--format", "csv"])
"""


def test_a_reader_that_goes_away_is_no_news() -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _TO_A_CLOSED_PIPE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.BROKEN_PIPE


_TO_NOTHING = """
import sys
import featuredb
from tests.cli.fake import FakeDatabase
featuredb.open = lambda path, **_: FakeDatabase()
from featuredb.cli import main
sys.argv = ["featuredb", "top", "db", "1"]
main()
"""


def test_an_output_that_the_shell_has_closed_is_no_news() -> None:
    call = [sys.executable, "-W", "error", "-c", _TO_NOTHING]
    shell = ["sh", "-c", '"$@" >&-', "sh", *call]
    done = subprocess.run(shell, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


_FOR_HOURS = """
import featuredb
from tests.cli.fake import FakeDatabase
featuredb.open = lambda path, **_: FakeDatabase()
from featuredb.cli import main
print("ready", flush=True)
main(["sql", "db", "SELECT count(*) FROM range(1000000000000) AS r WHERE r.range % 7 = 3"])
"""


def test_ctrl_c_ends_a_long_statement() -> None:
    ended = interrupted(_FOR_HOURS, after=1)
    assert ended == (ExitCode.INTERRUPTED, b"featuredb: interrupted\n")
