"""docs/guide/steering.md: its commands, its Python and every edit it shows run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from featuredb import Database
from featuredb.cli import main
from featuredb.steering.resolve import resolve_edits
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "guide" / "steering.md").read_text(encoding="utf-8")


def _here(text: str) -> str:
    """The page's features as those of the made database."""
    return text.replace("3722", "early/3").replace("1927", "early/4")


def _blocks(language: str) -> list[str]:
    return [_here(b) for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


def test_every_edit_of_the_tables(db: Database) -> None:
    edits = re.findall(r"^\| `(3722\S?=[^`]*)`", PAGE, re.MULTILINE)
    assert len(edits) > 10
    for edit in edits:
        (resolved,) = resolve_edits(db._store, _here(edit))
        assert resolved.name == "early/3"


def test_the_python(db: Database) -> None:
    names = {"db": db}
    for block in _blocks("python"):
        exec(compile(block, "steering.md", "exec"), names)


@pytest.mark.parametrize("block", _blocks("sh"))
def test_the_commands(
    block: str, steerable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    _, *call = shlex.split(block.replace("demo.fdb", str(steerable)).replace("\\\n", " "))
    if call[0] == "steer" and "--export" not in call:
        call += ["--max-new-tokens", "3"]
    ran = CliRunner().invoke(main, call)
    assert ran.exit_code == 0, ran.output
