"""`featuredb push`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.copying import progress


@click.command("push")
@options.database
@click.argument("url", metavar="URL")
def command(db: str, url: str) -> None:
    """Copy a database to a URL: only what is not there.

    Readers of the URL, as s3://bucket/my.fdb, see the old snapshot or the new one. Running the
    same command again continues one that was interrupted.
    """
    with progress("pushing") as report:
        done = featuredb.push(db, url, report=report)
    click.echo(done)
