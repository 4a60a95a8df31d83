"""`featuredb feature`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("feature")
@options.pinned_database
@options.feature
@options.limit(None, "contexts and neighbors (default: 5 and 10)")
@options.output
def command(db: str, snapshot: int | None, feature: str, k: int | None, output: Output) -> None:
    """Show a feature's statistics, tokens, contexts and neighbors."""
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.feature(feature, k=k))
