"""How far a verification is, on standard error where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass
class Bar:
    """Counts bytes read; shows nothing without a `progress`."""

    progress: Progress | None = None

    def doing(self, what: str, total: int) -> None:
        """Begin something that reads `total` bytes."""
        if self.progress is not None:
            task = self.progress.task_ids[0]
            self.progress.reset(task, total=max(1, total), description=what)

    def advance(self, read: int) -> None:
        """So many bytes more."""
        if self.progress is not None:
            self.progress.advance(self.progress.task_ids[0], read)


@contextmanager
def bar(show: bool) -> Iterator[Bar]:
    """A bar, visible when `show` is set and standard error is a terminal."""
    if not show or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with shown:
        shown.add_task("", total=None)
        yield Bar(shown)
