"""Every command and option explains itself, the table of commands is theirs, and help is quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from featuredb import __version__
from featuredb.cli import main
from featuredb.cli.exit_codes import ExitCode
from featuredb.cli.reference import BEGIN, END, markdown, renew, run
from featuredb.cli.root import LOOKUPS, VERBS, commands
from tests.cli.conftest import Invoke

_CONTEXT = click.Context(main, info_name="featuredb")


def _command(verb: str) -> click.Command:
    command = main.get_command(_CONTEXT, verb)
    assert command is not None
    return command


_VERBS = pytest.mark.parametrize("verb", VERBS)


@pytest.mark.parametrize("typed", dict(commands()))
def test_every_command_and_option_has_help(typed: str) -> None:
    command = dict(commands())[typed]
    assert command.name == typed.split()[-1]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.endswith((".", "above")), option.name


@_VERBS
def test_every_summary_fits_the_list_of_commands(verb: str, invoke: Invoke) -> None:
    assert "..." not in _command(verb).get_short_help_str(65)


def test_every_module_with_a_command_is_a_verb() -> None:
    folder = Path(__file__).parents[2] / "featuredb" / "cli"
    modules = {p.stem for p in folder.glob("*.py") if "\ndef command(" in p.read_text()}
    assert {name.replace("_", "-") for name in modules} == set(VERBS)


@pytest.mark.parametrize("verb", [*LOOKUPS, "snapshots"])
def test_every_query_has_format_and_output(verb: str) -> None:
    names = {name for p in _command(verb).params for name in p.opts}
    assert {"--format", "-o"} <= names
    assert verb in ("info", "snapshots", "steer", "document") or "-k" in names
    assert verb == "snapshots" or "--snapshot" in names


def test_help_lists_the_verbs_and_the_exit_codes(invoke: Invoke) -> None:
    shown = invoke("--help").stdout
    positions = [shown.index(f"\n  {verb} ") for verb in VERBS]
    assert positions == sorted(positions)
    for code in ExitCode:
        assert f"{code.value:>3}  {code.meaning}" in shown


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"featuredb {__version__}\n"


def test_reference_has_a_row_for_every_verb() -> None:
    rows = markdown().splitlines()
    assert len(rows) == 2 + len(dict(commands()))
    assert rows[2 + VERBS.index("feature")] == (
        "| `feature DB FEATURE` | Show a feature's statistics, tokens, contexts and neighbors. "
        r"| `--snapshot N` `-k N` `--format table\|json\|jsonl\|csv\|parquet` `-o FILE` |"
    )


def test_reference_renews_only_what_is_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    with pytest.raises(SystemExit, match="--write"):
        run(["--check", str(readme)], standalone_mode=False)
    run(["--write", str(readme)], standalone_mode=False)
    assert readme.read_text() == f"before\n{BEGIN}\n{markdown()}{END}\nafter\n"
    run(["--check", str(readme)], standalone_mode=False)
    with pytest.raises(ValueError, match="needs the lines"):
        renew("no markers")


_HEAVY = ("torch", "transformers", "lancedb", "faiss", "pandas", "polars", "safetensors")
_LIGHT = (*_HEAVY, "duckdb", "pyarrow", "rich", "numpy")
_LOADED = """
import sys
{code}
print(*(name for name in {names!r} if sys.modules.get(name)))
"""
_ASK = """
import featuredb
from tests.cli.fake import FakeDatabase
featuredb.open = lambda path, **_: FakeDatabase()
from featuredb.cli import main
sys.argv[1:] = {call!r}
main(standalone_mode=False)
"""


def _loaded(code: str, names: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LOADED.format(code=code, names=names)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_help_loads_nothing_large() -> None:
    code = "from featuredb.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert _loaded(code, _LIGHT) == ""


@pytest.mark.parametrize(
    "call",
    [
        ["info", "db"],
        ["top", "db", "1"],
        ["feature", "db", "1"],
        ["near", "db", "1", "--format", "json"],
        ["fires", "db", "--context", "1"],
        ["search", "db", "x"],
        ["sql", "db", "SELECT 1"],
        ["sql", "db", "SELECT 1", "--format", "parquet", "-o", "/dev/null"],
    ],
    ids=" ".join,
)
def test_the_command_line_itself_loads_nothing_heavy(call: list[str]) -> None:
    assert _loaded(_ASK.format(call=call), _HEAVY) == ""
