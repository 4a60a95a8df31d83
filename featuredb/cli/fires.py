"""`featuredb fires`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("fires")
@options.pinned_database
@click.argument("text", metavar="TEXT|-", required=False)
@click.option(
    "--context",
    metavar="ID",
    type=int,
    help="Use a stored context instead of a text. Needs no model.",
)
@options.model
@options.limit(20, "features")
@options.output
def command(
    db: str,
    snapshot: int | None,
    text: str | None,
    context: int | None,
    model: str | None,
    k: int,
    output: Output,
) -> None:
    """List the features that fire on a text, most specific first.

    TEXT goes through the model and the SAEs, which needs featuredb[ingest]. TEXT - reads standard
    input, without a final line feed unless it is a stored text that ends in one.
    """
    if (text is None) == (context is None):
        raise click.UsageError("give either a TEXT (or - for standard input) or --context ID")
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        if context is not None:
            answer = database.fires_in(context, k=k)
        else:
            given = options.text_or_stdin(text or "", database.has_text)
            answer = database.fires_on(given, k=k)
    output.write(answer)
