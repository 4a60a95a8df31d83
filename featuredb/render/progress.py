"""Messages and progress bars on standard error.

Code logs its messages to `log`, and counts with `progress`. Both appear inside `shown`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import rich.progress

log = logging.getLogger("featuredb")

_LINE_EVERY_S = 15.0


class _StandardError(logging.Handler):
    """Prints messages as they are, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.console import Console

        # A new console for each message: a bar replaces sys.stderr while it is drawn.
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        console.print(record.getMessage(), soft_wrap=True)


@contextmanager
def shown(show: bool = True) -> Iterator[None]:
    """Write messages and progress to standard error inside the block, if `show`. May be nested."""
    if not show or _is_shown():
        yield
        return
    handler, level = _StandardError(), log.level
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _is_shown() -> bool:
    return any(isinstance(handler, _StandardError) for handler in log.handlers)


class Progress:
    """A bar if one is drawn, otherwise a message now and then, if details are given."""

    def __init__(self, bar: rich.progress.Progress | None = None) -> None:
        self._bar = bar
        self._total, self._before, self._done = 1, 0, 0
        self._started = self._logged = time.monotonic()

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Start counting to `total`, of which `done` are already done."""
        self._total, self._before, self._done = max(1, total), done, done
        self._started = self._logged = time.monotonic()
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.reset(task, total=self._total, completed=done, description=what, details="")

    def advance(self, amount: int, details: str = "") -> None:
        """Count `amount` more, negative where work was lost."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=amount, details=details)
        elif details and time.monotonic() - self._logged > _LINE_EVERY_S:
            self._logged = time.monotonic()
            seconds = self._logged - self._started
            left = (self._total - self._done) * seconds / max(1, self._done - self._before)
            log.info(f"{self._done / self._total:4.0%}  {details}  {left / 60:.1f} min left")

    def move_to(self, done: int, total: int) -> None:
        """Set the position and the total."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)


@contextmanager
def progress(
    what: str, unit: Literal["bytes", "tokens", "features"], *, transient: bool = False
) -> Iterator[Progress]:
    """Progress of the block. Inside `shown` it is a bar if standard error is a terminal.

    transient: remove the bar in the end.
    """
    if not _is_shown() or not sys.stderr.isatty():
        yield Progress()
        return
    from rich import progress as rich
    from rich.console import Console

    amounts = (
        (rich.DownloadColumn(), rich.TransferSpeedColumn())
        if unit == "bytes"
        else (rich.TaskProgressColumn(), rich.TextColumn("{task.fields[details]}"))
    )
    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=None),
        *amounts,
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
    )
    with bar:
        bar.add_task(what, total=None, details="")
        yield Progress(bar)
