"""`featuredb ablate`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("ablate")
@options.pinned_database
@click.argument("features", metavar="[FEATURE]...", nargs=-1, shell_complete=completing.features)
@click.option("--sql", "query", metavar="QUERY", help="Features by rows of sae and feature_id.")
@click.option("--about", metavar="PHRASE", help="The 10 features that a phrase is about.")
@click.option(
    "--target", metavar="FILE", required=True, help="Texts that should suffer, as of fires --file."
)
@click.option("--control", metavar="FILE", help="Texts that should not.")
@click.option(
    "--dose",
    "doses",
    metavar="D",
    type=float,
    multiple=True,
    default=(0.5, 1.0),
    show_default=True,
    help="Share of each activation to take away, once for each.",
)
@options.model
@options.output
def command(
    db: str,
    snapshot: int | None,
    features: tuple[str, ...],
    query: str | None,
    about: str | None,
    target: str,
    control: str | None,
    doses: tuple[float, ...],
    model: str | None,
    output: Output,
) -> None:
    """Take features away over texts: the loss there, by dose."""
    from queries.text_files import read_texts

    if sum(map(bool, (features, query, about))) != 1:
        raise click.UsageError("name the features in one way: FEATURE..., --sql or --about")
    files = [
        None if path is None else [text for _, text in read_texts(path)]
        for path in (target, control)
    ]
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        chosen: Any = list(features)
        if query:
            chosen = database.sql(query)
        elif about:
            chosen = database.about(about, 10)
        output.write(database.ablate(chosen, files[0] or [], files[1], doses))
