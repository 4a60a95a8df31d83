"""Every statement of docs/cookbook.md runs, with the columns the page states, and finds something.

Always on a made store, where the answer is that of `cookbook_answers`, and on the demo's database
if it exists.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import featuredb
from tests.docs.conftest import made_world
from tests.docs.cookbook_answers import ANSWERS, Arrays, arrays, is_a_sample
from tests.docs.pages import COOKBOOK, ROOT, Block, blocks, named_features, on_made_store

QUESTIONS = blocks(COOKBOOK, "sql")
SILENT_ON_MADE = {"Which positions were left out as sinks?"}
SAMPLE = "What does a feature do below its peaks?"
DEMO = ROOT / "demo.fdb"


def stated_columns(block: Block) -> list[str]:
    match = re.search(r"^Columns: (.*)\.$", block.after, re.MULTILINE)
    assert match is not None, f"{block.id} does not state its columns"
    return re.findall(r"`(\w+)`", match[1])


def labels() -> str:
    (csv,) = blocks(COOKBOOK, "csv")
    return csv.text


@pytest.fixture(scope="module")
def made() -> Arrays:
    return arrays(made_world())


def test_each_question_has_a_heading_and_an_answer_of_its_own() -> None:
    headings = [block.heading for block in QUESTIONS]
    assert len(headings) >= 45
    assert len(set(headings)) == len(headings)
    assert set(headings) == {*ANSWERS, SAMPLE}


def test_the_features_it_names_are_those_in_its_table() -> None:
    named = set(named_features())
    macros = r"(?:feature_activations|feature_contexts|top_contexts|near)\((\d+)"
    used = {n for b in QUESTIONS for n in re.findall(macros, b.text)}
    used |= {n for b in QUESTIONS for n in re.findall(r"feature_id = (\d+)", b.text)}
    assert used <= named


@pytest.mark.parametrize("block", QUESTIONS, ids=lambda b: b.id)
def test_on_a_made_store(
    block: Block,
    made_store: Path,
    made: Arrays,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(on_made_store(labels()))
    with featuredb.open(made_store) as db:
        answer = db.sql(on_made_store(block.text)).to_arrow_table()
    assert answer.column_names == stated_columns(block)
    assert answer.num_rows > 0 or block.heading in SILENT_ON_MADE
    rows = [tuple(row.values()) for row in answer.to_pylist()]
    if block.heading == SAMPLE:
        is_a_sample(made, rows)
        return
    assert rows == [tuple(map(about, row)) for row in ANSWERS[block.heading](made)]


def about(value: object) -> object:
    """What a value of an answer is compared with."""
    value = value.item() if isinstance(value, np.generic) else value
    return pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value


@pytest.mark.skipif(not (DEMO / "CURRENT").exists(), reason="there is no demo.fdb: make demo")
@pytest.mark.parametrize("block", QUESTIONS, ids=lambda b: b.id)
def test_on_the_demo(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(labels())
    with featuredb.open(DEMO) as db:
        answer = db.sql(block.text).to_arrow_table()
    assert answer.column_names == stated_columns(block)
    assert answer.num_rows > 0
