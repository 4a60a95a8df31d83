"""The notebooks of examples/notebooks: small, executed without errors, free of local paths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LARGEST = 300_000


def cells(name: str) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    text = (ROOT / "examples" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_committed_without_local_paths(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not re.search(r"/(root|home|work|tmp|Users)/", text)
    assert all(cell["execution_count"] for cell in cells(path.stem))
    outputs = [output for cell in cells(path.stem) for output in cell["outputs"]]
    assert len(outputs) >= 8
    assert not [output for output in outputs if output["output_type"] == "error"]
