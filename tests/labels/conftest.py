"""A database to label."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.make_store import make_store
from tests.queries.test_questions import small_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SAEs of five features each, at two hooks."""
    world = small_world(("demo", "other"))
    world.saes[1] = replace(world.saes[1], hook="blocks.1.hook_resid_post")
    path = tmp_path_factory.mktemp("made") / "my.fdb"
    make_store(path, world)
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A database for this test."""
    return Path(shutil.copytree(made, tmp_path / "my.fdb"))
