"""`featuredb vacuum`"""

from __future__ import annotations

from datetime import timedelta

import click

import featuredb
from featuredb.cli import options
from featuredb.store.units import duration_of


@click.command("vacuum")
@options.database
@click.option(
    "--grace",
    metavar="TIME",
    default="1h",
    show_default=True,
    help="Keep a snapshot this long after a newer one came, for who has it open: 0s, 30m, 2d.",
)
@click.option("--unfinished", is_flag=True, help="Give up an ingest that was begun, not finished.")
def command(db: str, grace: str, unfinished: bool) -> None:
    """Remove older snapshots and free their space."""
    wait: timedelta = duration_of(grace)
    done = featuredb.vacuum(db, grace=wait, unfinished=unfinished)
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
