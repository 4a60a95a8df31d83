"""`featuredb label`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output
from featuredb.labels.methods import HUMAN


@click.command("label")
@options.database
@options.feature
@click.argument("text", metavar="TEXT")
@click.option("--prefer", is_flag=True, help="Show the label TEXT, which is there, before others.")
@click.option("--remove", is_flag=True, help="Remove the label TEXT.")
@click.option(
    "--vote",
    "votes",
    metavar="N",
    type=int,
    help="Add N votes to the label TEXT. Negative ones are against it.",
)
@click.option("--method", metavar="NAME", default=HUMAN, show_default=True, help="How it was made.")
@click.option("--model", metavar="NAME", help="The model that wrote it, if one did.")
@options.output
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    feature: str,
    text: str,
    prefer: bool,
    remove: bool,
    votes: int | None,
    method: str,
    model: str | None,
    output: Output,
) -> None:
    """Label a feature: write what it means.

    The new label is shown wherever the feature is. With --prefer, --remove or --vote TEXT is a
    label that is there, or the beginning of its id. Then shows the feature's labels.
    """
    if prefer + remove + (votes is not None) > 1:
        raise click.UsageError("give one of --prefer, --remove and --vote")
    if prefer or remove or votes is not None:
        options.refuse(ctx, ["method", "model"], "TEXT is a label that is there")
    with featuredb.open(db) as database:
        if prefer:
            answer = database.prefer_label(feature, text)
        elif remove:
            answer = database.remove_label(feature, text)
        elif votes is not None:
            answer = database.vote_for_label(feature, text, votes)
        else:
            answer = database.label(feature, text, method=method, model=model)
        output.write(answer)
