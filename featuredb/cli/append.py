"""`featuredb append`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingest import arguments_of, report


@click.command("append")
@options.database
@arguments_of("append")
def command(db: str, **arguments: Any) -> None:
    """Add a corpus to an existing database.

    Uses the database's model and SAEs. If they have moved, --model and --sae (once per SAE) say
    where they are now. Resumable: after an interruption, run the same command again.
    """
    report(db, lambda: featuredb.append(db, progress=True, **arguments))
