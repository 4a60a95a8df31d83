"""`featuredb near`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("near")
@options.database
@options.feature
@click.option(
    "--by",
    type=click.Choice(("decoder", "encoder", "coactivation")),
    default="decoder",
    show_default=True,
    help="Near in decoder direction, in encoder direction, or active on the same tokens.",
)
@options.limit(20, "neighbors")
@options.output
def command(db: str, feature: str, by: str, k: int, output: Output) -> None:
    """The features nearest to a feature."""
    with featuredb.open(db) as database:
        answer = database.near(feature, k=k, by=by)
    output.write(answer)
