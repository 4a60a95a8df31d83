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
    help="Compare decoder directions, encoder directions, or where features are active.",
)
@click.option(
    "--sae",
    metavar="NAME",
    shell_complete=completing.saes,
    help="Only features of this SAE, of any hook with directions as long. With --vector: the SAE "
    "whose hooks to search.",
)
@click.option("--opposite", is_flag=True, help="The most negative cosines instead.")
@click.option(
    "--unit",
    type=click.Choice(("token", "document")),
    default="token",
    show_default=True,
    help="With --by coactivation: active on the same tokens, or in the same documents.",
)
@click.option(
    "--vector",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use the vector in this .npy file instead of a FEATURE.",
)
@click.option(
    "--token",
    metavar="TOKEN",
    help="Use a token's row of the model's matrix, as --token \" bridge\", instead of a FEATURE.",
)
@click.option(
    "--matrix",
    type=click.Choice(("unembedding", "embedding")),
    default="unembedding",
    show_default=True,
    help="With --token: the matrix that has the row.",
)
@options.model
@click.option("--exact", is_flag=True, help="Do not use the approximate index.")
@options.limit(20, "neighbors")
@options.output
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    snapshot: int | None,
    feature: str | None,
    by: str,
    sae: str | None,
    opposite: bool,
    unit: str,
    vector: Path | None,
    token: str | None,
    matrix: str,
    model: str | None,
    exact: bool,
    k: int,
    output: Output,
) -> None:
    """List the features nearest to a feature, a vector or a token.

    The line above the table says what chance gives: how near a feature's nearest is in the median,
    and how near the nearest of as many random directions would be.
    """
    if [feature, vector, token].count(None) != 2:
        raise click.UsageError("give a FEATURE, --vector FILE or --token TOKEN")
    if token is None:
        options.refuse(ctx, ("matrix", "model"), "only a --token is looked up in the model")
    if feature is None:
        options.refuse(ctx, ("unit",), "only a FEATURE has activations")
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        if vector is not None:
            answer = database.near_vector(
                _read(vector), k=k, by=by, sae=sae, exact=exact, opposite=opposite
            )
        elif token is not None:
            answer = database.near_token(
                token, k=k, by=by, matrix=matrix, sae=sae, exact=exact, opposite=opposite
            )
        else:
            answer = database.near(
                feature or "", k=k, by=by, exact=exact, sae=sae, opposite=opposite, unit=unit
            )
    output.write(answer)


def _read(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise QueryError(f"{path} is not a .npy file of numbers ({error})") from None
