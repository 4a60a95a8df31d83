"""`featuredb about`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("about")
@options.pinned_database
@click.argument("text", metavar="PHRASE")
@click.option(
    "--by",
    type=click.Choice(("both", "firing", "evidence")),
    default="both",
    show_default=True,
    help="What fires on the phrase, features whose top contexts have it, or both.",
)
@options.limit(20, "features")
@options.output
def command(db: str, snapshot: int | None, text: str, by: str, k: int, output: Output) -> None:
    """List the features that a phrase is about. No labels are needed.

    Firing runs the model. --by evidence asks the store alone: of a feature's strongest documents,
    how many have the phrase or its words, and how far that is from chance.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.about(text, k, by)
    output.write(answer)
