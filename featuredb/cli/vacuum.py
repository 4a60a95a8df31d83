"""`featuredb vacuum`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options


@click.command("vacuum")
@options.database
@click.option(
    "--grace",
    metavar="TIME",
    help="Keep a snapshot this long after it was replaced, for open readers: 0s, 30m, 2d.",
    **options.default("vacuum", "grace"),
)
@click.option("--unfinished", is_flag=True, help="Also discard an unfinished ingest.")
def command(db: str, grace: str, unfinished: bool) -> None:
    """Remove older snapshots and free their space."""
    done = featuredb.vacuum(db, grace=grace, unfinished=unfinished)
    nothing = not done.snapshots and not done.files
    click.echo(
        f"{db}: nothing to remove"
        if nothing
        else f"{db}: removed {_count(len(done.snapshots), 'older snapshot')} and "
        f"{_count(done.files, 'file')}, {_count(done.bytes, 'byte')}",
        err=True,
    )
    if done.kept:
        last = max(done.kept.values()).astimezone().strftime("%Y-%m-%d %H:%M")
        click.echo(
            f"{_count(len(done.kept), 'older snapshot')} may go by {last}; "
            f"--grace 0s removes {'it' if len(done.kept) == 1 else 'them'} at once",
            err=True,
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
