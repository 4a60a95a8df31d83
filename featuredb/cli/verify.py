"""`featuredb verify`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.exit_codes import ExitCode
from featuredb.render.characters import neutralize

_CONTEXTS = 64


@click.command("verify")
@options.database
@click.option("--all-snapshots", is_flag=True, help="Also check older snapshots.")
@click.option(
    "--source",
    metavar="[N]",
    type=click.IntRange(1, 1 << 15),
    is_flag=False,
    flag_value=_CONTEXTS,
    help=f"Run N contexts (default: {_CONTEXTS}) through the model again and compare.",
)
@options.model
@options.memory("verify")
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    all_snapshots: bool,
    source: int | None,
    model: str | None,
    memory: str,
) -> None:
    """Check every file of a database.

    Prints the problems found. The exit code is that of a damaged database if there are any.
    """
    report = featuredb.verify(
        db,
        memory=memory,
        all_snapshots=all_snapshots,
        source=source or 0,
        model=model,
        progress=True,
    )
    for line in str(report).splitlines():
        click.echo(neutralize(line))
    if not report.ok:
        ctx.exit(ExitCode.DATABASE)
