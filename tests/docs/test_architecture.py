"""docs/architecture.md: its steps add a question, and its rooms exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def _files() -> dict[str, str]:
    """The blocks of "Adding a question", by the file they go into."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    found = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)^```$", text, re.M | re.S)
    return dict(found)


def test_a_question_is_added_as_the_page_says(tmp_path: Path, made_store: Path) -> None:
    for room in ("featuredb", "ingest", "queries"):
        skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / room, tmp_path / room, ignore=skip)
    files = _files()
    lines = [line for text in files.values() for line in text.splitlines() if line.strip()]
    assert len(lines) < 40
    database = tmp_path / "featuredb" / "database.py"
    method = "".join(f"    {line}\n" for line in files.pop("featuredb/database.py").splitlines())
    handle = database.read_text(encoding="utf-8")
    database.write_text(handle.replace("    def close(self)", f"{method}\n    def close(self)"))
    for path, text in files.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text, encoding="utf-8")

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "featuredb.cli", *words]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    asked = run("rare", str(made_store), "-k", "3", "--format", "csv")
    query = (
        "SELECT sae, feature_id, count, density FROM features WHERE count > 0 "
        "ORDER BY count, sae, feature_id LIMIT 3"
    )
    assert asked == run("sql", str(made_store), query, "--format", "csv")
    assert asked.count("\n") == 4
    assert "rare" in run("--help")


@pytest.mark.parametrize("room", re.findall(r"`([\w/]+/)`", ARCHITECTURE.read_text("utf-8")))
def test_a_room_is_there(room: str) -> None:
    parents = ("", "featuredb", "featuredb/store", "ingest")
    assert any((ROOT / parent / room).is_dir() for parent in parents)
