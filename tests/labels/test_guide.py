"""docs/guide/labels.md: its commands and its Python run, one after another."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from tests.docs.pages import ROOT
from tests.make_store import make_store
from tests.queries.test_questions import small_world

PAGE = (ROOT / "docs" / "guide" / "labels.md").read_text(encoding="utf-8").replace("3722", "3")


def test_the_page_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(Path("demo.fdb"), small_world(("demo",)))
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
    assert {language for language, _ in blocks} == {"sh", "python"}
    for language, block in blocks:
        if language == "python":
            with featuredb.open("demo.fdb") as db:
                exec(compile(block, "labels.md", "exec"), {"db": db})
            continue
        for line in block.splitlines():
            _, *call = shlex.split(line)
            ran = CliRunner().invoke(main, call)
            assert ran.exit_code == 0, ran.output
