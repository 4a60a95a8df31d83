"""Shared fixtures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import ObjectStore, serve

_LONGEST = (
    "ingest/test_engines_ray.py",
    "crashes/test_crashes.py",
    "ingest/test_life_edges.py",
    "test_memory.py",
    "ingest/test_cross_layer.py",
    "ingest/test_ingest.py",
    "queries/test_questions.py",
)
"""A file runs on one worker. Those that take minutes begin first, so that none is left alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were found."""
    place = {name: at for at, name in enumerate(_LONGEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.relative_to(root).as_posix(), len(place)))


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server on loopback with one empty bucket, set up in the environment."""
    with pytest.MonkeyPatch.context() as patched, serve(patched) as store:
        yield store


@pytest.fixture(autouse=os.environ.get("FEATUREDB_TEST_DEVICE") == "pretend", scope="session")
def everything_on_the_pretend_device() -> Iterator[None]:
    """FEATUREDB_TEST_DEVICE=pretend pytest …: "auto" chooses an accelerator that is made up."""
    from tests.pretend_device import NAME, pretend_device, without_inference_mode

    with pytest.MonkeyPatch.context() as patched, without_inference_mode(), pretend_device():
        patched.setattr("ingest.model.device._best_device", lambda: NAME)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After tests of SAE formats: how far encode() was from the right values, by format."""
    files = sys.modules.get("tests.ingest.sae_files")
    if files is not None and files.ERRORS:
        terminalreporter.section("largest error of encode(), by format and rule")
        for name, error in sorted(files.ERRORS.items()):
            terminalreporter.line(f"{error:8.1e}  {name}")
