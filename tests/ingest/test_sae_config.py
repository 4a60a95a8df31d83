"""Configuration keys that change encode() and that no reader heeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featuredb.errors import SaeError
from ingest.sae.config import refuse_unheeded


@pytest.mark.parametrize("value", [True, 1, 2.0, "layer", [0.5]])
def test_what_is_set_is_refused_by_name(value: Any) -> None:
    with pytest.raises(SaeError, match=f"sets normalize_input: {value!r}".replace("[", r"\[")):
        refuse_unheeded(Path("cfg.json"), {"normalize_input": value, "lr": 1})


@pytest.mark.parametrize("value", [None, False, 0, 1.0, "", "none", []])
def test_what_is_not_set_changes_nothing(value: Any) -> None:
    refuse_unheeded(Path("cfg.json"), {"input_scale": value})
