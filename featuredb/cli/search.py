"""`featuredb search`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("search")
@options.pinned_database
@click.argument("query", metavar="QUERY")
@click.option(
    "--by",
    type=click.Choice(("tokens", "evidence")),
    help="Tokens they fire on, or words that their top contexts have. Default: tokens, and "
    "evidence where that finds nothing.",
)
@options.limit(20, "features")
@options.output
def command(
    db: str, snapshot: int | None, query: str, by: str | None, k: int, output: Output
) -> None:
    """Find features by the words they fire on or promote.

    Case and punctuation do not matter. music* is every word that begins so.

    The score is the share of a feature's firing that falls on the word (0.01 for the token it
    promotes most), less for features that fired a few times, and added up over words. Common words
    count little beside rare ones.
    """
    if not query.strip():
        raise click.UsageError("there are no words in QUERY")
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.search(query, k, by)
    output.write(answer)
