"""Steering on an accelerator, one made up in `tests.pretend_device`, is the CPU's, bit for bit.

But for `attribute`: what goes back through a model is torch's own, which asks for a real device.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import featuredb
from featuredb import Database
from ingest.extract import recorded
from tests.pretend_device import AVAILABLE, NAME, pretend_device, without_inference_mode

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this torch makes no device in Python")

PROMPT = " river bridge stone water"


def _measured(db: Database) -> list[float]:
    assert isinstance(db.location, Path)
    path = db.location.with_name(f"{recorded.recorded(db._store).model.device.type}.fdb")
    shutil.copytree(db.location, path)
    featuredb.measure(path, ["early/3", "late/5"], progress=False)
    with featuredb.open(path) as copy:
        figures = "SELECT output_score, kl, moved, collateral, collateral_forecast FROM effects"
        return [figure for row in copy.sql(figures).fetchall() for figure in row]


def _generated(db: Database) -> list[int]:
    with db.intervene(["early/3=30x", "late/5*=2 @ prompt"]) as model:
        ids = db.tokenizer(PROMPT, return_tensors="pt").to(model.device)
        made = model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    tokens: list[int] = made[0].tolist()
    return tokens


def _steered(db: Database) -> tuple[pa.Table, list[Any]]:
    answer = db.steer([PROMPT, " music"], "early/3=30x", max_new_tokens=4)
    return answer.table, answer.moved_table.to_pylist()


ASKED: dict[str, Callable[[Database], Any]] = {
    "steer": _steered,
    "sweep": lambda db: db.sweep([PROMPT, " music"], "early/3=1x", "1,20x", max_new_tokens=4).table,
    "effect": lambda db: db.effect("early/7", k=3, save=False).table,
    "ablate": lambda db: db.ablate(["early/3", "late/2"], [PROMPT], doses=(1.0,)).table,
    "generate": _generated,
}


@pytest.fixture(scope="module")
def on_the_cpu(db: Database) -> dict[str, Any]:
    return {name: ask(db) for name, ask in ASKED.items()} | {"measured": _measured(db)}


@pytest.fixture(scope="module")
def on_the_device(db: Database, on_the_cpu: dict[str, Any]) -> Iterator[Database]:
    """The database, its model and its SAEs loaded once more. "auto" chooses the device."""

    def forget() -> None:
        recorded._load_model.cache_clear()
        recorded._SAES.clear()

    with pytest.MonkeyPatch.context() as patched, without_inference_mode(), pretend_device():
        patched.setattr("ingest.model.device._best_device", lambda: NAME)
        forget()
        assert recorded.recorded(db._store).model.device.type == NAME
        yield db
    forget()


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_is_the_cpu_s(
    on_the_device: Database, on_the_cpu: dict[str, Any], name: str
) -> None:
    assert ASKED[name](on_the_device) == on_the_cpu[name]


def test_what_is_measured_is_the_cpu_s_but_for_its_sums(
    on_the_device: Database, on_the_cpu: dict[str, Any]
) -> None:
    assert _measured(on_the_device) == pytest.approx(on_the_cpu["measured"], rel=1e-3)
