"""`featuredb snapshots`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("snapshots")
@options.database
@options.output
def command(db: str, output: Output) -> None:
    """The snapshots that a database keeps.

    --snapshot N of the other verbs asks one of them.
    """
    output.write(featuredb.snapshots(db))
