"""`featuredb find`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("find")
@options.pinned_database
@click.option(
    "--all",
    metavar="FEATURE",
    multiple=True,
    shell_complete=completing.features,
    help="Fires. Repeat it for several that all fire.",
)
@click.option(
    "--any",
    metavar="FEATURE",
    multiple=True,
    shell_complete=completing.features,
    help="One of these fires, or --at-least N of them.",
)
@click.option(
    "--none",
    metavar="FEATURE",
    multiple=True,
    shell_complete=completing.features,
    help="Does not fire.",
)
@click.option(
    "--unit",
    type=click.Choice(("token", "context", "document")),
    default="token",
    show_default=True,
    help="Where they fire together, and what a row is.",
)
@click.option(
    "--within",
    metavar="N",
    type=click.IntRange(min=0),
    help="They fire within N tokens of the first --all.",
)
@click.option("--ordered", is_flag=True, help="Those of --all fire one after another.")
@click.option(
    "--at-least", metavar="M", type=click.IntRange(min=1), help="How many of --any have to fire."
)
@click.option(
    "--where",
    metavar="SQL",
    shell_complete=completing.columns,
    help="SQL condition on what is looked at, as of `top`.",
)
@click.option(
    "--token",
    metavar="TEXT",
    help="Token at which the first --all, or each --any, fires: ' bridge', ' bri*' or /brid/.",
)
@options.limit(20, "rows")
@options.window
@options.output
def command(
    db: str,
    snapshot: int | None,
    all: tuple[str, ...],
    any: tuple[str, ...],
    none: tuple[str, ...],
    unit: str,
    within: int | None,
    ordered: bool,
    at_least: int | None,
    where: str | None,
    token: str | None,
    k: int,
    window: int,
    output: Output,
) -> None:
    """Find tokens, contexts or documents where features fire together.

    A FEATURE may have bounds on its activation: '1234 > 5', '1234 >= 0.5x' for half its maximum,
    '1234 > q0.9' for a quantile of its activations. The strongest come first: a row is as strong as
    its weakest feature, relative to that feature's maximum.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.find(
            all, any, none, unit, within, ordered, at_least, where, k, token=token, window=window
        )
    output.write(answer)
