"""docs/guide/ingest.md: its tables of SAE formats say what the code reads and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.sae import load_sae
from ingest.sae.detect import _NEEDED
from ingest.sae.refused import REFUSED
from tests.docs.pages import ROOT, table
from tests.ingest import test_sae_forks as forks
from tests.ingest import test_sae_transcoders as transcoders

GUIDE = (ROOT / "docs" / "guide" / "ingest.md").read_text(encoding="utf-8")


def rows(header: str) -> list[list[str]]:
    """The rows of the table whose header line begins so."""
    return table(GUIDE[GUIDE.index(f"| {header}") :])


def test_there_is_a_row_for_every_format() -> None:
    formats = rows("format | files")
    assert sorted(row[0] for row in formats) == sorted(needs.partition(":")[0] for needs in _NEEDED)
    assert all(len(row) == 4 and all(row) for row in formats)


def test_what_is_refused_and_why() -> None:
    refused = {row[0]: row[2] for row in rows("release | read") if row[1] == "no"}
    assert refused == {refusal.name: refusal.why for refusal in REFUSED}


READ: dict[str, Callable[[Path], Any]] = {
    "Qwen-Scope": lambda folder: forks.qwen(folder / "SAE-Res-Q-W1K-L0_4"),
    "circuit-tracer's transcoders": lambda folder: load_sae(
        transcoders.tracer(folder, transcoders.weights())
    ),
    "Llamascopium": transcoders.openmoss,
    "Gemma Scope 2 without config.json": lambda folder: forks.test_gemma_scope_2_without_config(
        folder, "renamed/layer_5_width_16k_l0_small", None, None, None
    ),
    "science-of-finetuning's BatchTopK": lambda folder: forks.finetuning(
        folder / "run", mean=forks.MEAN, std=forks.STD, scale=forks.G, rms=2.5
    ),
    "EleutherAI/clt-training": forks.clt_training,
    "InterPLM": lambda folder: forks.test_interplm(folder, True, "ae.pt"),
    "TransformerLens's processed GPT-2": forks.kissane,
}
"""A release that the table says is read, and what loads one."""


@pytest.mark.parametrize("name", [row[0] for row in rows("release | read") if row[1] != "no"])
def test_what_is_read(tmp_path: Path, name: str) -> None:
    READ[name](tmp_path)
