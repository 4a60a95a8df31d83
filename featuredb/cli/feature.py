"""`featuredb feature`"""

from __future__ import annotations

from dataclasses import replace

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("feature")
@options.pinned_database
@options.feature
@options.limit(None, "contexts and neighbors; default a few")
@options.output
def command(db: str, snapshot: int | None, feature: str, k: int | None, output: Output) -> None:
    """One feature's dashboard: numbers, tokens, contexts, neighbors."""
    with featuredb.open(db, snapshot=snapshot) as database:
        card = database.feature(feature)
        if k is not None:
            card = replace(
                card,
                contexts=database.top_contexts(feature, k=k),
                neighbors=database.near(feature, k=k),
            )
    output.write(card)
