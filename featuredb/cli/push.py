"""`featuredb push`"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

import featuredb
from featuredb.cli import options
from featuredb.render.progress import progress as progress_of
from featuredb.render.progress import shown


@click.command("push")
@options.database
@click.argument("url", metavar="URL")
def command(db: str, url: str) -> None:
    """Upload a database, skipping files already there.

    Readers of the URL, such as s3://bucket/my.fdb, see the old snapshot or the new one. Resumable:
    after an interruption, run the same command again.
    """
    with progress("pushing") as report:
        done = featuredb.push(db, url, report=report)
    click.echo(done)


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar if standard error is a terminal. Gives the `report` of push and pull."""
    with shown(), progress_of(doing, "bytes") as bar:
        yield bar.move_to
