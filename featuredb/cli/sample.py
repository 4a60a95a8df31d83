"""`featuredb sample`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output


@click.command("sample")
@options.pinned_database
@options.feature
@options.limit(20, "contexts, at least one per bin")
@click.option(
    "--bins",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of bins of activation. Default: 10, or K where that is less.",
)
@click.option(
    "--by",
    type=click.Choice(("width", "quantile")),
    default="width",
    show_default=True,
    help="Bins of one width, or of equally many contexts.",
)
@options.seed
@options.window
@options.output
def command(
    db: str,
    snapshot: int | None,
    feature: str,
    k: int,
    bins: int | None,
    by: str,
    seed: int,
    window: int,
    output: Output,
) -> None:
    """Draw contexts over the whole range of a feature's activations.

    The column bin_weight says how many of the feature's contexts each row stands for, so weighted
    sums estimate what all contexts would give.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.sample_contexts(feature, k, bins, seed, by=by, window=window)
    output.write(answer)
