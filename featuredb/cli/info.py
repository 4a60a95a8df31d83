"""`featuredb info`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("info")
@options.pinned_database
@options.output
def command(db: str, snapshot: int | None, output: Output) -> None:
    """Show what a database holds, its provenance and its size."""
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.info())
