"""What `push` and `pull` show while they copy: a bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from featuredb.render.progress import progress as progress_of
from featuredb.render.progress import shown


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what to call with (bytes done, bytes to copy). Nothing is drawn but on a terminal."""
    with shown(), progress_of(doing, "bytes") as bar:
        yield bar.move_to
