"""`featuredb search`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("search")
@options.pinned_database
@click.argument("query", metavar="QUERY")
@options.limit(20, "features")
@options.output
def command(db: str, snapshot: int | None, query: str, k: int, output: Output) -> None:
    """Find features by the words they fire on or promote."""
    if not query.strip():
        raise click.UsageError("there are no words in QUERY")
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.search(query, k=k)
    output.write(answer)
