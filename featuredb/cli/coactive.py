"""`featuredb coactive`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output

_OF_A_LIST = ("k", "unit", "by", "sae", "min_both")
_OF_ALL = ("unit", "sae", "min_both", "memory")


@click.command("coactive")
@options.pinned_database
@click.argument("feature", metavar="[FEATURE]", required=False, shell_complete=completing.features)
@click.option(
    "--with",
    "other",
    metavar="FEATURE",
    shell_complete=completing.features,
    help="Count only this feature with it, by token and by document.",
)
@click.option(
    "--unit",
    type=click.Choice(("token", "document")),
    default="token",
    show_default=True,
    help="Active on the same token, or anywhere in the same document.",
)
@click.option(
    "--by",
    type=click.Choice(("npmi", "jaccard", "count")),
    default="npmi",
    show_default=True,
    help="Order by normalized pointwise mutual information, overlap, or how often both fire.",
)
@click.option(
    "--sae",
    metavar="NAME",
    shell_complete=completing.saes,
    help="The SAE whose features are counted. Default: the feature's own.",
)
@click.option(
    "--min-both",
    metavar="N",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Leave out features that fire together with it less often.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Every pair of features of an SAE, to -o FILE.parquet, instead of a FEATURE's.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="With --all: memory limit.",
)
@options.limit(20, "features")
@options.output
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    snapshot: int | None,
    feature: str | None,
    other: str | None,
    unit: str,
    by: str,
    sae: str | None,
    min_both: int,
    everything: bool,
    memory: str,
    k: int,
    output: Output,
) -> None:
    """List the features that fire together with a feature.

    With --with, how often two features fire together: counts, conditional probabilities, Jaccard,
    NPMI, phi and G². With --all, all of that for every pair, as a table of millions of rows.
    """
    if (feature is None) != everything or (everything and other is not None):
        raise click.UsageError("give a FEATURE, or --all")
    if other is not None:
        options.refuse(ctx, (*_OF_A_LIST, "memory"), "--with counts one pair")
    elif everything:
        options.refuse(ctx, set(_OF_A_LIST) - set(_OF_ALL), "--all counts every pair")
    else:
        options.refuse(ctx, ("memory",), "a list of one feature's needs little memory")
    with featuredb.open(db, snapshot=snapshot) as database:
        if everything:
            output.check_streams()
            output.stream(database.coactive_pairs(unit, sae=sae, min_both=min_both, memory=memory))
        elif other is not None:
            output.write(database.coactivation(feature or "", other))
        else:
            answer = database.coactive(feature or "", k, unit, by, sae=sae, min_both=min_both)
            output.write(answer)
