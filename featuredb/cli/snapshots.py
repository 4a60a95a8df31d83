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
    """List the snapshots in a database.

    Option --snapshot N of the query commands selects one.
    """
    output.write(featuredb.snapshots(db))
