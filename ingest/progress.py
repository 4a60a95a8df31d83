"""What an ingest shows while it runs, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 15.0


@dataclass
class Meter:
    """Counts tokens and activations and shows them; quiet when `progress` and `console` are None.

    A terminal gets a bar; anything else (a log file) a line every 15 seconds.
    """

    total: int
    console: Console | None
    progress: Progress | None
    done: int = 0
    tokens: int = 0
    activations: int = 0
    started: float = field(default_factory=time.monotonic)
    _spoke: float = field(default_factory=time.monotonic)

    def report(self, tokens: int, activations: int) -> None:
        """Called after each batch."""
        self.tokens += tokens
        self.activations += activations
        if self.progress is not None:
            self.progress.update(
                self.progress.task_ids[0], completed=self.done + self.tokens, rates=self.rates()
            )
        elif self.console is not None and time.monotonic() - self._spoke > _LINE_EVERY_S:
            self._spoke = time.monotonic()
            share = (self.done + self.tokens) / max(1, self.total)
            left = (self.total - self.done - self.tokens) * self.seconds / max(1, self.tokens)
            self.console.print(f"{share:4.0%}  {self.rates()}  {left / 60:.1f} min left")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def rates(self) -> str:
        """Tokens per second, activations per second, L0."""
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.tokens / seconds:,.0f} tokens/s  "
            f"{self.activations / seconds:,.0f} activations/s  "
            f"L0 {self.activations / max(1, self.tokens):.1f}"
        )


@contextmanager
def meter(total: int, done: int, *, show: bool) -> Iterator[Meter]:
    """A meter over `total` tokens of which `done` were done before."""
    if not show:
        yield Meter(total, None, None, done)
        return
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield Meter(total, console, None, done)
        return
    bar = Progress(
        TextColumn("ingesting"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        bar.add_task("ingest", total=total, completed=done, rates="")
        yield Meter(total, console, bar, done)


def say(text: str, *, show: bool) -> None:
    """One line of what is going on."""
    if show:
        Console(stderr=True, highlight=False).print(text, soft_wrap=True)
