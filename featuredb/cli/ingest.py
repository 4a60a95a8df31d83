"""`featuredb ingest`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingesting import what_to_ingest


@click.command("ingest")
@options.database
@what_to_ingest
def command(db: str, told: dict[str, Any]) -> None:
    """Run a corpus through a model and SAEs; store all activations.

    Running the same command again continues one that was interrupted.
    """
    try:
        featuredb.ingest(db, progress=True, **told)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "interrupted; run the same command again to continue where it stopped"
        ) from error
