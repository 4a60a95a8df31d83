"""What featuredb logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from featuredb.render.progress import log


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """The messages logged in the block."""
    collector, level = _Collector(), log.level
    log.addHandler(collector)
    log.setLevel(logging.INFO)
    try:
        yield collector.messages
    finally:
        log.removeHandler(collector)
        log.setLevel(level)
