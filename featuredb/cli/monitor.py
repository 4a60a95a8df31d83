"""`featuredb monitor`: rules over features, stored, calibrated, replayed and run."""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.exit_codes import ExitCode
from featuredb.cli.output import Output
from featuredb.errors import one_line
from featuredb.render.characters import neutralize

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
@options.limit(None, "alarms (default: all, of which a table shows 20)")
@options.output
def replay(
    db: str,
    snapshot: int | None,
    rule: str,
    where: str | None,
    window: int,
    k: int | None,
    output: Output,
) -> None:
    """Show the alarms of a monitor, or of a rule, on everything stored."""
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.replay(rule, where=where, window=window, k=k))


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


@command.command("run")
@options.pinned_database
@click.argument("names", metavar="[NAME]... FILE|-", nargs=-1, required=True)
@click.option(
    "--text-column",
    metavar="NAME",
    default="text",
    show_default=True,
    help="What a record's text is called.",
)
@click.option(
    "--id-column",
    metavar="NAME",
    help="What a record's id is called. Default: id, where there is one.",
)
@click.option("--jsonl", is_flag=True, help="Standard input has JSON lines: texts or chats.")
@click.option("--skip-broken", is_flag=True, help="Skip records that cannot be read; count them.")
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Texts read together. 1 answers each text at once.",
)
@click.option(
    "--window",
    metavar="N",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Tokens shown on each side.",
)
@click.option("--fail", is_flag=True, help="Exit with 10 if any monitor fires.")
@options.model
@options.output
def run(
    db: str,
    snapshot: int | None,
    names: tuple[str, ...],
    jsonl: bool,
    fail: bool,
    model: str | None,
    output: Output,
    **how: Any,
) -> None:
    """Run monitors over new texts or chats: all that are enabled, or those named.

    FILE: .jsonl has per line a text, a record with a text, or messages as of OpenAI; .eval is a
    log of Inspect; .json, .csv, .tsv and .parquet are read too; any other file, and -, has a text
    per line. With -o FILE.jsonl an interrupted run goes on where it was: run it again.
    """
    from featuredb.monitors.running import MonitorRun
    from featuredb.render.progress import shown

    *chosen, path = names
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        made = MonitorRun(database, tuple(chosen) or None, path, jsonl=jsonl, **how)
        with shown():
            made.write(output)
    for reason in made.broken[:10]:
        click.echo(f"featuredb: skipped: {neutralize(one_line(reason))}", err=True)
    click.echo(f"featuredb: {made.summary}", err=True)
    if fail and made.alarms:
        click.get_current_context().exit(ExitCode.ALARM)
