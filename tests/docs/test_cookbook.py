"""Every statement of docs/cookbook.md runs, with the columns the page states, and finds something.

Always on a made store, and on the demo's database if it exists.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import featuredb
from tests.docs.pages import COOKBOOK, ROOT, Block, blocks, named_features, on_made_store

QUESTIONS = blocks(COOKBOOK, "sql")
SILENT_ON_MADE = {"Which positions were left out as sinks?"}
DEMO = ROOT / "demo.fdb"


def stated_columns(block: Block) -> list[str]:
    match = re.search(r"^Columns: (.*)\.$", block.after, re.MULTILINE)
    assert match is not None, f"{block.id} does not state its columns"
    return re.findall(r"`(\w+)`", match[1])


def labels() -> str:
    (csv,) = blocks(COOKBOOK, "csv")
    return csv.text


def test_the_page_has_a_dozen_questions_each_with_a_heading_of_its_own() -> None:
    headings = [block.heading for block in QUESTIONS]
    assert len(headings) >= 12
    assert len(set(headings)) == len(headings)


def test_the_features_it_names_are_those_in_its_table() -> None:
    named = set(named_features())
    macros = r"(?:feature_activations|feature_contexts|top_contexts|near)\((\d+)"
    used = {n for b in QUESTIONS for n in re.findall(macros, b.text)}
    used |= {n for b in QUESTIONS for n in re.findall(r"feature_id = (\d+)", b.text)}
    assert used <= named


@pytest.mark.parametrize("block", QUESTIONS, ids=lambda b: b.id)
def test_on_a_made_store(
    block: Block, made_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(on_made_store(labels()))
    with featuredb.open(made_store) as db:
        answer = db.sql(on_made_store(block.text)).to_arrow_table()
    assert answer.column_names == stated_columns(block)
    assert answer.num_rows > 0 or block.heading in SILENT_ON_MADE


@pytest.mark.skipif(not (DEMO / "CURRENT").exists(), reason="there is no demo.fdb: make demo")
@pytest.mark.parametrize("block", QUESTIONS, ids=lambda b: b.id)
def test_on_the_demo(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(labels())
    with featuredb.open(DEMO) as db:
        answer = db.sql(block.text).to_arrow_table()
    assert answer.column_names == stated_columns(block)
    assert answer.num_rows > 0
