"""`featuredb silent`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("silent")
@options.pinned_database
@options.feature
@options.limit(20, "contexts")
@click.option(
    "--like",
    type=click.Choice(("tokens", "neighbors", "random")),
    default="tokens",
    show_default=True,
    help="With a token it elsewhere fires on, where a neighbor fires, or any.",
)
@options.seed
@options.window
@options.output
def command(
    db: str,
    snapshot: int | None,
    feature: str,
    k: int,
    like: str,
    seed: int,
    window: int,
    output: Output,
) -> None:
    """Draw contexts in which a feature never fires.

    The token that matched is marked.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.silent_contexts(feature, k, like, seed, window=window)
    output.write(answer)
