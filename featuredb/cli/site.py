"""`featuredb site`"""

from __future__ import annotations

import signal
import sys

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.render.numbers import size


@click.command("site")
@options.pinned_database
@click.argument("out", metavar="OUT", shell_complete=completing.files)
def command(db: str, snapshot: int | None, out: str) -> None:
    """Write pages of the database that any host of files serves.

    Home, search, a page for every feature and what is near it, in the folder OUT. Put it on a host
    that answers ranged requests, or see it with featuredb serve OUT --site.
    """
    # A folder that is not yet finished goes with the process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    written = featuredb.site(db, out, snapshot=snapshot, progress=True)
    click.echo(f"{written.folder}: {written.files} files, {size(written.bytes)}")
