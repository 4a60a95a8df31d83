"""`featuredb compact`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options


@click.command("compact")
@options.database
@options.memory("compact")
def command(db: str, memory: str) -> None:
    """Merge a database's segments, so that queries open fewer files."""
    done = featuredb.compact(db, memory=memory, progress=True)
    if done.before == done.after:
        click.echo(f"{db}: nothing to merge, there are as few segments as can be", err=True)
    else:
        click.echo(f"{db}: {done.before} segments became {done.after}", err=True)
