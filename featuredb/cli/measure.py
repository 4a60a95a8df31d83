"""`featuredb measure`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("measure")
@options.database
@click.argument(
    "features",
    metavar="[FEATURE]...",
    nargs=-1,
    callback=options.listed,
    shell_complete=completing.features,
)
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    callback=options.listed,
    help="A neutral prompt, once for each. Default: four short ones.",
)
@click.option(
    "--map",
    "place",
    is_flag=True,
    help="Place all features on a map instead, near ones together: FROM feature_map, page /map.",
)
@options.model
@options.output
def command(
    db: str,
    features: list[str] | None,
    prompts: list[str] | None,
    place: bool,
    model: str | None,
    output: Output,
) -> None:
    """Measure what steering with features does, and store it.

    Output score, divergence, collateral and the tokens that gain and lose, over neutral prompts.
    All features that fire, or some. Resumable: after an interruption, run the same command again.
    The view effects has the results: featuredb sql DB "FROM effects".
    """
    if place:
        if features or prompts or model:
            raise click.UsageError("--map places all features, and needs no model: give it alone")
        placed = featuredb.map_features(db, progress=True)
        click.echo(f"{placed:,} features placed: see /map of featuredb serve, or FROM feature_map")
        return
    output.write(featuredb.measure(db, features, prompts=prompts, model=model, progress=True))
