"""`featuredb effect`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output
from featuredb.render.progress import shown


@click.command("effect")
@options.database
@options.features("features")
@options.limit(10, "contexts of each feature, and as many in which it is silent")
@click.option("--sample", is_flag=True, help="Contexts from the whole range, not the top ones.")
@options.seed
@click.option("--save/--no-save", default=True, help="Store the answer in the view effects.")
@options.model
@options.output
def command(
    db: str,
    features: tuple[str, ...],
    k: int,
    sample: bool,
    seed: int,
    save: bool,
    model: str | None,
    output: Output,
) -> None:
    """Test whether features are causal: ablate each where it fires.

    Compares the loss of the next token with and without it, and with as much taken away where it is
    silent. Sign tests are corrected over the features that are given together.
    """
    with featuredb.open(db, model=model) as database, shown():
        output.write(database.effect(features, k, sample=sample, seed=seed, save=save))
