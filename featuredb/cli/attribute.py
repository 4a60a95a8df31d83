"""`featuredb attribute`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("attribute")
@options.pinned_database
@click.argument("text", metavar="TEXT")
@click.option(
    "--token",
    metavar="T",
    required=True,
    help="The next token whose logit it is, with its space, such as ' Paris'.",
)
@options.model
@options.output
def command(
    db: str, snapshot: int | None, text: str, token: str, model: str | None, output: Output
) -> None:
    """Show what features contribute to a token's logit.

    Directly, where all parts add up to the logit, and by activation times gradient.
    """
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        output.write(database.attribute(text, token))
