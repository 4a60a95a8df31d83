"""Messages and bars: shown on request, once, on standard error."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from featuredb.render.progress import Progress, log, progress, shown
from tests.logs import logged


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_messages_are_shown_only_inside_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    level, handlers = log.level, list(log.handlers)
    log.info("before")
    with shown(), shown(), shown(False):
        log.info("[red]once[/red] :smile: " + "x" * 200)
    with shown(False):
        log.info("not shown")
    log.info("after")
    assert capsys.readouterr().err == "[red]once[/red] :smile: " + "x" * 200 + "\n"
    assert (log.level, log.handlers) == (level, handlers)


def test_a_level_that_shows_more_is_left_alone() -> None:
    level = log.level
    log.setLevel(logging.DEBUG)
    try:
        with shown():
            assert log.level == logging.DEBUG
    finally:
        log.setLevel(level)


def test_a_terminal_gets_a_bar_and_a_file_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuredb.render.progress._LINE_EVERY_S", 0.0)

    def count(bar: Progress) -> None:
        bar.start("ingesting", 100, done=20)
        bar.advance(40, "7 tokens/s")

    for error, bars, messages in ((Terminal(), True, 0), (io.StringIO(), False, 1)):
        monkeypatch.setattr(sys, "stderr", error)
        with shown(), logged() as lines, progress("ingesting", "tokens") as bar:
            count(bar)
        assert ("ingesting" in error.getvalue()) == bars
        assert len(lines) == messages
    assert lines[0].startswith(" 60%  7 tokens/s  0.0 min left")
    with logged() as lines, progress("ingesting", "tokens") as bar:
        bar.start("reading", 10)
        bar.advance(5)
        bar.move_to(7, 10)
    assert lines == []
