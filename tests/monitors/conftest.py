"""A real database of a tiny chat model and two SAEs, with three monitors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import featuredb
from tests.steering.conftest import steerable as steerable


@pytest.fixture(scope="package")
def watched(steerable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`often` fires in many texts, `calm` is a mean over both SAEs, `never` never fires."""
    path = Path(shutil.copytree(steerable, tmp_path_factory.mktemp("watched") / "w.fdb"))
    with featuredb.open(path) as db:
        dense = db.sql(
            "SELECT sae, arg_max(feature_id, density) FROM features GROUP BY sae ORDER BY sae"
        ).fetchall()
    one, two = (f"{sae}/{number}" for sae, number in dense)
    featuredb.add_monitor(path, "often", f"{one} > q0.4")
    featuredb.add_monitor(path, "calm", f"mean({one}, 4) > 0.4x or {two} > q0.99")
    featuredb.add_monitor(path, "never", f"{one} > 1e6")
    return path


@pytest.fixture(scope="module")
def db(watched: Path) -> Iterator[featuredb.Database]:
    with featuredb.open(watched) as opened:
        yield opened
