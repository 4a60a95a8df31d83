"""`featuredb add-sae`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingest import arguments_of, report


@click.command("add-sae")
@options.database
@arguments_of("add_saes")
def command(db: str, **arguments: Any) -> None:
    """Add SAEs to an existing database.

    The corpora's files are not needed. Resumable: after an interruption, run the same command
    again.
    """
    report(db, lambda: featuredb.add_saes(db, progress=True, **arguments))
