"""`featuredb pull`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.push import progress


@click.command("pull")
@click.argument("url", metavar="URL")
@options.database
def command(url: str, db: str) -> None:
    """Download a database, skipping existing files.

    Checks every file against its SHA-256. Resumable: after an interruption, run the same command
    again.
    """
    with progress("pulling") as report:
        done = featuredb.pull(url, db, report=report)
    click.echo(done)
