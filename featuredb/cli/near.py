"""`featuredb near`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output
from featuredb.errors import QueryError


@click.command("near")
@options.pinned_database
@click.argument("feature", metavar="[FEATURE]", required=False, shell_complete=completing.features)
@click.option(
    "--by",
    type=click.Choice(("decoder", "encoder", "coactivation")),
    default="decoder",
    show_default=True,
    help="Compare decoder directions, encoder directions, or the tokens features are active on.",
)
@click.option(
    "--vector",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use the vector in this .npy file instead of a FEATURE.",
)
@click.option(
    "--sae",
    metavar="NAME",
    shell_complete=completing.saes,
    help="With --vector: the SAE to search.",
)
@click.option("--exact", is_flag=True, help="Do not use the approximate index.")
@options.limit(20, "neighbors")
@options.output
def command(
    db: str,
    snapshot: int | None,
    feature: str | None,
    by: str,
    vector: Path | None,
    sae: str | None,
    exact: bool,
    k: int,
    output: Output,
) -> None:
    """List the features nearest to a feature or a vector."""
    if (feature is None) == (vector is None):
        raise click.UsageError("give a FEATURE, or --vector FILE")
    with featuredb.open(db, snapshot=snapshot) as database:
        if vector is not None:
            answer = database.near_vector(_read(vector), k=k, by=by, sae=sae, exact=exact)
        else:
            answer = database.near(feature or "", k=k, by=by, exact=exact)
    output.write(answer)


def _read(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise QueryError(f"{path} is not a .npy file of numbers ({error})") from None
