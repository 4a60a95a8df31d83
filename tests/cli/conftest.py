"""The command line on a fake database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import featuredb
from featuredb.cli import main
from tests.cli.fake import FakeDatabase

Invoke = Callable[..., Result]


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> FakeDatabase:
    """The handle that `featuredb.open` returns."""
    fake = FakeDatabase()
    monkeypatch.setattr(featuredb, "open", lambda path, **_: fake, raising=False)
    return fake


@pytest.fixture
def invoke(database: FakeDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Run `featuredb ARGS` in an empty folder, off any terminal."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, args, input=stdin, catch_exceptions=False)

    return run
