"""`featuredb plan`"""

from __future__ import annotations

from typing import Any, Literal

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingest import arguments_of
from featuredb.cli.output import Output


@click.command("plan")
@options.database
@arguments_of("plan")
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="Output format.",
)
def command(db: str, form: Literal["table", "json"], **arguments: Any) -> None:
    """Estimate the size and duration of an ingest.

    Takes the options of `featuredb ingest`. Tokenizes the corpus and runs the model over a sample
    of it. Writes nothing.
    """
    Output(form).write(featuredb.plan(db, progress=True, **arguments))
