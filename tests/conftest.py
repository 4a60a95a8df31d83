"""Shared fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.object_store import ObjectStore, serve


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server on loopback with one empty bucket, set up in the environment."""
    with pytest.MonkeyPatch.context() as patched, serve(patched) as store:
        yield store


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After tests of SAE formats: how far encode() was from the right values, by format."""
    files = sys.modules.get("tests.ingest.sae_files")
    if files is not None and files.ERRORS:
        terminalreporter.section("largest error of encode(), by format and rule")
        for name, error in sorted(files.ERRORS.items()):
            terminalreporter.line(f"{error:8.1e}  {name}")
