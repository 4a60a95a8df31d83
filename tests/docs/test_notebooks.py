"""The notebooks of examples/notebooks: committed with clean outputs, and they run on made data."""

from __future__ import annotations

import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import featuredb
from tests.docs.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
FEATURE_PAGE, OWN_PAGE = "what_does_this_feature_mean", "my_own_sae_and_corpus"
CONTRAST_PAGE = "what_distinguishes_two_corpora"
STEERING_PAGE = "what_does_this_feature_do"
LARGEST = 300_000


def cells(name: str) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    text = (ROOT / "examples" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict[str, Any]) -> list[str]:
    """The cell's tags: "parameters" for what a test replaces, "model" for what needs a model."""
    return list(cell["metadata"].get("tags", []))


def execute(name: str, parameters: dict[str, object], without: str = "") -> dict[str, Any]:
    """Run a notebook's code cells in one namespace, with these in place of its parameters."""
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells(name)):
        source = "".join(cell["source"])
        if "parameters" in tags(cell):
            assert set(parameters) <= set(re.findall(r"\b(\w+)(?=(?:, \w+)* = )", source))
            if parameters:
                namespace |= parameters | {"Path": Path}
                continue
        if without not in tags(cell):
            exec(compile(source, f"{name}, cell {number}", "exec"), namespace)
    return namespace


def test_there_are_four() -> None:
    pages = [CONTRAST_PAGE, FEATURE_PAGE, OWN_PAGE, STEERING_PAGE]
    assert [path.stem for path in NOTEBOOKS] == sorted(pages)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_committed_without_local_paths(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not re.search(r"/(root|home|work|tmp|Users)/", text)
    assert all(cell["execution_count"] for cell in cells(path.stem))
    outputs = [output for cell in cells(path.stem) for output in cell["outputs"]]
    assert len(outputs) >= 8
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_a_feature(made_store: Path) -> None:
    """On the made store, which has no model: the sentence is left out."""
    made = execute(FEATURE_PAGE, {"database": str(made_store), "feature": 0}, without="model")
    assert made["card"].statistics.max_activation > 0


def test_two_corpora(made_store: Path) -> None:
    topics = {"a": "topic = 'History'", "b": "topic = 'Geography'"}
    made = execute(CONTRAST_PAGE, {"database": str(made_store), **topics}, without="figure")
    assert made["found"].tested > 0
    # Topics alternate there, so even and odd documents do differ.
    assert made["nothing"].n_a == made["nothing"].n_b


def test_an_sae_and_a_corpus_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model and an SAE of random weights. They explain nothing, so the load check is off."""
    tiny = pytest.importorskip("tests.tiny", reason="ingesting needs featuredb[ingest]")
    model, sae = tiny.tiny_model(tmp_path / "model"), tiny.tiny_sae(tmp_path / "sae")
    real, ours = tempfile.mkdtemp, str(_made(tmp_path / "folder"))
    monkeypatch.setattr("tempfile.mkdtemp", lambda **how: real(**how) if how else ours)
    for name in ("ingest", "append"):
        function = partial(getattr(featuredb, name), check=False)
        monkeypatch.setattr(featuredb, name, function, raising=False)
    made = execute(OWN_PAGE, {"model": str(model), "sae": str(sae)})
    assert made["outcome"].fresh
    assert len(made["hits"]) > 0


def test_what_a_feature_does(tmp_path: Path) -> None:
    """With a model of random weights, which is steered like any other."""
    tiny = pytest.importorskip("tests.tiny", reason="steering needs featuredb[ingest]")
    featuredb.ingest(
        tmp_path / "s.fdb",
        corpus=str(tiny.write_jsonl(tmp_path / "c.jsonl", tiny.tiny_documents(20))),
        model=str(tiny.tiny_model(tmp_path / "model")),
        saes=[str(tiny.tiny_sae(tmp_path / "sae"))],
        check=False,
    )
    with featuredb.open(tmp_path / "s.fdb") as db:
        asked = "SELECT feature_id FROM features ORDER BY count DESC LIMIT 1"
        ((feature,),) = db.sql(asked).fetchall()
    parameters = {
        "database": str(tmp_path / "s.fdb"),
        "feature": feature,
        "prompts": ["river bridge", "stone"],
        "strengths": ["0x", "1x"],
        "tokens": 4,
        "text": "river bridge",
        "word": " stone",
        "phrase": "river stone",
        "target": "river bridge stone",
        "control": "river river",
    }
    made = execute(STEERING_PAGE, parameters, without="figure")
    assert len(made["steered"].effects)
    assert len(made["swept"])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
