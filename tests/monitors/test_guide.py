"""docs/guide/monitoring.md: every rule of its table, its commands and its Python run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from queries.rules.rule import FeatureRule
from tests.docs.pages import ROOT
from tests.monitors.test_watch import CHAT, write_log

PAGE = (ROOT / "docs" / "guide" / "monitoring.md").read_text(encoding="utf-8")


def _here(text: str) -> str:
    """The page's features as those of the made database."""
    return text.replace("f3722", "early/3").replace("f1927", "early/4").replace("3722", "early/3")


def _blocks(language: str) -> list[str]:
    return [_here(b) for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


def test_every_rule_of_the_table(db: featuredb.Database) -> None:
    rules = re.findall(r"^\| `([^`]*)`", PAGE, re.MULTILINE)
    assert len(rules) == 15
    for rule in rules:
        made = FeatureRule.parse(db._store, _here(rule))
        assert made.features[0] == ("early", 3)


def test_the_commands_and_the_python(
    watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, over a copy of the database."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(watched, "demo.fdb")
    Path("mail.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    write_log(Path("logs.eval"), [{"id": 1, "epoch": 1, "messages": CHAT}])
    for block in _blocks("sh"):
        for line in block.splitlines():
            # The tiny corpus has no topics, and its rates are those of few tokens.
            line = line.replace(" --by topic", "").replace("50/M", "20/k").replace("> 12", "> 0.1")
            ran = CliRunner().invoke(main, shlex.split(line)[1:])
            assert ran.exit_code in (0, 10), (line, ran.output)
    assert Path("alarms.jsonl").exists()
    with featuredb.open("demo.fdb") as db:
        names = {"db": db}
        for block in _blocks("python"):
            block = block.replace(', by="topic"', "")
            exec(compile(block, "monitoring.md", "exec"), names)
