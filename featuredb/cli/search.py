"""`featuredb search`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("search")
@options.pinned_database
@click.argument("query", metavar="QUERY")
@click.option(
    "--by",
    type=click.Choice(("tokens", "evidence", "meaning")),
    help="Labels and tokens they fire on; words that their top contexts have; or labels of nearly "
    "the same meaning. Default: tokens, and evidence where that finds nothing.",
)
@click.option(
    "--encoder",
    metavar="M",
    shell_complete=completing.files,
    help="By meaning: a sentence encoder, a folder or hub name. Default: all-MiniLM-L6-v2.",
)
@options.limit(20, "features")
@options.output
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    snapshot: int | None,
    query: str,
    by: str | None,
    encoder: str | None,
    k: int,
    output: Output,
) -> None:
    """Find features by label, by words they fire on, or by meaning.

    Case and punctuation do not matter. music* is every word that begins so. /expression/ finds
    features whose top contexts match it.

    The score is the share of a feature's firing that falls on the word (0.01 for the token it
    promotes most), less for features that fired a few times, and added up over words. Common words
    count little beside rare ones. A label that is the word itself counts 1. By meaning, the score
    is the cosine to the label.
    """
    if not query.strip():
        raise click.UsageError("there are no words in QUERY")
    if by != "meaning":
        options.refuse(ctx, ["encoder"], "only --by meaning has an encoder")
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.search(query, k, by, encoder=encoder)
    output.write(answer)
