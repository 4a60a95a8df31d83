"""`featuredb monitor`: rules over features, stored, calibrated, replayed and run."""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output

_NAME = click.argument("name", metavar="NAME")
_RULE = click.argument("rule", metavar="NAME|RULE")


@click.group("monitor")
def command() -> None:
    """Store rules over features, and see where they fire.

    A rule is a condition at a token: "f12 > 5", "f12 > q0.99", "max(f1, f2) > 3 and not f40",
    "f7 for 3 tokens", "mean(f1, 10) > 2 and role = user".
    """


@command.command("add")
@options.database
@_NAME
@click.argument("rule", metavar="RULE")
@click.option("--note", metavar="TEXT", default="", help="What it is for.")
@click.option("--owner", metavar="WHO", help="Who answers for it. Default: your user name.")
@click.option(
    "--rate",
    metavar="N/M",
    help="At most so many alarms per million tokens (5/M), thousand (1/k) or other number "
    "(1/200000) on what is stored: sets the number that RULE leaves open, as in 'f12 > ?'.",
)
@click.option("--where", metavar="SQL", help="With --rate, the stored documents that count.")
@click.option("--replace", is_flag=True, help="Make the next version of the monitor NAME.")
@options.output
def add(
    db: str,
    name: str,
    rule: str,
    note: str,
    owner: str | None,
    rate: str | None,
    where: str | None,
    replace: bool,
    output: Output,
) -> None:
    """Store RULE as the monitor NAME, and say how often it fires on what is stored."""
    output.write(
        featuredb.add_monitor(
            db, name, rule, note=note, owner=owner, rate=rate, where=where, replace=replace
        )
    )


@command.command("list")
@options.pinned_database
@options.output
def list_all(db: str, snapshot: int | None, output: Output) -> None:
    """List the monitors."""
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.monitors)


@command.command("show")
@options.pinned_database
@_NAME
@options.output
def show(db: str, snapshot: int | None, name: str, output: Output) -> None:
    """Show every version of a monitor, the last first."""
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.monitor(name))


@command.command("enable")
@options.database
@_NAME
@options.output
def enable(db: str, name: str, output: Output) -> None:
    """Enable a monitor that was disabled."""
    output.write(featuredb.set_monitor(db, name, "enabled"))


@command.command("disable")
@options.database
@_NAME
@options.output
def disable(db: str, name: str, output: Output) -> None:
    """Leave a monitor out of runs that do not name it."""
    output.write(featuredb.set_monitor(db, name, "disabled"))


@command.command("remove")
@options.database
@_NAME
@options.output
def remove(db: str, name: str, output: Output) -> None:
    """Remove a monitor. Its history is kept."""
    output.write(featuredb.set_monitor(db, name, "removed"))


@command.command("replay")
@options.pinned_database
@_RULE
@click.option("--where", metavar="SQL", help="Only alarms in documents where SQL holds.")
@click.option(
    "--window",
    metavar="N",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Tokens shown on each side.",
)
@options.output
def replay(
    db: str, snapshot: int | None, rule: str, where: str | None, window: int, output: Output
) -> None:
    """Show the alarms of a monitor, or of a rule, on everything stored."""
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.replay(rule, where=where, window=window))


@command.command("calibrate")
@options.pinned_database
@_RULE
@click.option("--by", metavar="COLUMN", help="A column of documents that groups them.")
@click.option("--rate", metavar="N/M", help="As of add: find the number that RULE leaves open.")
@click.option("--where", metavar="SQL", help="Only documents where SQL holds count.")
@options.output
def calibrate(
    db: str,
    snapshot: int | None,
    rule: str,
    by: str | None,
    rate: str | None,
    where: str | None,
    output: Output,
) -> None:
    """Count the alarms of a monitor, or of a rule, per million tokens and per document.

    Exact on what is stored, with 95 % intervals that take documents for the unit.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.calibrate(rule, by=by, rate=rate, where=where))
