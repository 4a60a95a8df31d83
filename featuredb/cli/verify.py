"""`featuredb verify`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.exit_codes import ExitCode
from featuredb.render.characters import neutralise


@click.command("verify")
@options.database
@click.pass_context
def command(ctx: click.Context, db: str) -> None:
    """Check every file of a database against its snapshot.

    Prints what is wrong, if anything is, and ends with the exit code of a damaged database then.
    """
    report = featuredb.verify(db)
    for line in str(report).splitlines():
        click.echo(neutralise(line))
    if not report.ok:
        ctx.exit(ExitCode.DATABASE)
