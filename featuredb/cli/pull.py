"""`featuredb pull`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.copying import progress


@click.command("pull")
@click.argument("url", metavar="URL")
@options.database
def command(url: str, db: str) -> None:
    """Copy a database from a URL: only what is not there.

    Every file is checked against its SHA-256. Running the same command again continues one that
    was interrupted.
    """
    with progress("pulling") as report:
        done = featuredb.pull(url, db, report=report)
    click.echo(done)
