"""`featuredb plan`"""

from __future__ import annotations

from typing import Any, Literal

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingesting import what_to_ingest
from featuredb.cli.output import Output


@click.command("plan")
@options.database
@what_to_ingest
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="How to write the answer.",
)
def command(db: str, told: dict[str, Any], form: Literal["table", "json"]) -> None:
    """What an ingest would make, and how long it would take.

    Tokenises the corpus and runs the model over a sample of it. Leaves nothing behind.
    """
    Output(form).write(featuredb.plan(db, progress=True, **told))
