"""A mistyped path is refused before torch is imported, and nothing is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import featuredb
from featuredb.store.layout import Layout
from tests.make_store import MadeSae, World, make_store

_SCRIPT = """
import sys
from featuredb.cli import main

try:
    main(sys.argv[1:])
finally:
    print(*({"torch", "transformers"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    folder = tmp_path_factory.mktemp("mistyped")
    (folder / "mail.jsonl").write_text('{"text": "x"}\n')
    (folder / "model").mkdir()
    (folder / "tried" / "smol").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    dense, rows = np.array([[0], [1]], np.float32), np.ones((1, 2), np.float32)
    make_store(
        folder / "a.fdb", World([[[0, 1]]], {}, ["<s>", " a"], [MadeSae("s", [dense], rows, rows)])
    )
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "ingest new.fdb --corpus mial.jsonl --model model --sae sae",
            "there is no file or folder mial.jsonl; did you mean mail.jsonl?",
        ),
        (
            "ingest new.fdb --corpus *.csv --model model --sae sae",
            "no file matches *.csv; quote the pattern",
        ),
        (
            "ingest new.fdb --corpus mail.jsonl --model ./modle --sae sae",
            "no model at modle: there is no such folder",
        ),
        (
            "ingest new.fdb --corpus mail.jsonl --model tried/smoll --sae sae",
            "no model at tried/smoll: did you mean tried/smol? (on the hub: hf:tried/smoll)",
        ),
        (
            "plan new.fdb --corpus mail.jsonl --model model --sae modell",
            "no SAE at modell: did you mean model?",
        ),
        ("append b.fdb --corpus mail.jsonl", "there is no database at "),
        ("append a.fdb --corpus mial.jsonl", "there is no file or folder mial.jsonl"),
        ("append a.fdb --corpus mail.jsonl --model ./modle", "no model at modle"),
        ("add-sae b.fdb --sae model", "there is no database at "),
        ("add-sae a.fdb --sae ~/no/where", "there is no folder "),
        ("fires a.fdb hello --model ./modle", "no model at modle"),
        ("verify a.fdb --source 1 --model ./modle", "no model at modle"),
    ],
    ids=lambda value: value.partition(" --")[0] if value[0].islower() and " --" in value else "",
)
def test_before_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments.split()], capture_output=True, text=True
    )
    assert done.returncode in (3, 5)
    assert done.stdout == "\n"
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    locks = {Layout(folder / "a.fdb").lock}
    assert set(folder.rglob("*")) - locks == set(before) - locks
    assert featuredb.open("a.fdb").snapshot.number == 1
