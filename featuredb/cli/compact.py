"""`featuredb compact`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options


@click.command("compact")
@options.database
def command(db: str) -> None:
    """Merge a database's runs, so that queries open fewer files."""
    featuredb.compact(db)
    click.echo(f"{db}: compacted", err=True)
