"""`featuredb coactive`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output

_OF_A_LIST = ("k", "unit", "by", "sae", "min_both")


@click.command("coactive")
@options.pinned_database
@options.feature
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
@options.limit(20, "features")
@options.output
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    snapshot: int | None,
    feature: str,
    other: str | None,
    unit: str,
    by: str,
    sae: str | None,
    min_both: int,
    k: int,
    output: Output,
) -> None:
    """List the features that fire together with a feature.

    With --with, how often two features fire together: counts, conditional probabilities, Jaccard,
    NPMI, phi and G².
    """
    given = [name for name in _OF_A_LIST if _given(ctx, name)]
    if other is not None and given:
        option = "-k" if given[0] == "k" else "--" + given[0].replace("_", "-")
        raise click.UsageError(f"{option} is about a list of features: leave it out, or --with")
    with featuredb.open(db, snapshot=snapshot) as database:
        if other is not None:
            output.write(database.coactivation(feature, other))
        else:
            output.write(database.coactive(feature, k, unit, by, sae=sae, min_both=min_both))


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
