"""`featuredb top`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("top")
@options.pinned_database
@options.features("feature")
@options.limit(20, "contexts")
@options.window
@click.option(
    "--where",
    metavar="SQL",
    shell_complete=completing.columns,
    help="SQL condition on documents and contexts, e.g. \"topic = 'History'\". Where it names "
    "role, token, token_id or token_index, e.g. \"role = 'assistant'\", only the tokens that it "
    "holds for count for a context's maximum.",
)
@click.option(
    "--min-activation", metavar="X", type=float, help="Only contexts whose maximum is at least X."
)
@click.option(
    "--max-activation", metavar="X", type=float, help="Only contexts whose maximum is at most X."
)
@click.option(
    "--offset",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    help="Contexts to pass over: the next page of 20 is --offset 20.",
)
@click.option("--per-document", is_flag=True, help="Only the first context of each document.")
@click.option("--distinct", is_flag=True, help="Only the first of contexts with equal tokens.")
@options.output
def command(
    db: str,
    snapshot: int | None,
    feature: tuple[str, ...],
    k: int,
    window: int,
    where: str | None,
    min_activation: float | None,
    max_activation: float | None,
    offset: int,
    per_document: bool,
    distinct: bool,
    output: Output,
) -> None:
    """List the contexts where each of some features is most active.

    On a terminal every token is shaded by its activation, relative to the feature's maximum.
    Without colors, active tokens are in single angle quotes and the peak in double ones.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.top_contexts(
            feature[0] if len(feature) == 1 else feature,
            k=k,
            window=window,
            where=where,
            min_activation=min_activation,
            max_activation=max_activation,
            offset=offset,
            per_document=per_document,
            distinct=distinct,
        )
    output.write(answer)
