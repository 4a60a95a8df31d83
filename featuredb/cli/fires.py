"""`featuredb fires`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output

if TYPE_CHECKING:
    from queries.encode import Pool

_K = 20


@click.command("fires")
@options.pinned_database
@click.argument("text", metavar="TEXT|-", required=False)
@click.option(
    "--context",
    metavar="ID",
    type=int,
    help="Use a stored context instead of a text. Needs no model.",
)
@click.option(
    "--file",
    metavar="F",
    shell_complete=completing.files,
    help="Use many texts: one per line, or per record of a .jsonl, .csv or .parquet file with a "
    "column text, and perhaps id. - is standard input. Lists all activations, per token.",
)
@click.option(
    "--pool",
    type=click.Choice(("max", "sum", "mean")),
    help="With --file, one row per feature and text: this, over the text's tokens.",
)
@options.model
@options.limit(None, f"features (default: {_K}; with --file all of each token or text)")
@options.output
def command(
    db: str,
    snapshot: int | None,
    text: str | None,
    context: int | None,
    file: str | None,
    pool: Pool | None,
    model: str | None,
    k: int | None,
    output: Output,
) -> None:
    """List the features that fire on a text, most specific first.

    TEXT goes through the model and the SAEs, which needs featuredb[ingest]. TEXT - reads standard
    input, without a final line feed unless it is a stored text that ends in one.
    """
    if [text, context, file].count(None) != 2:
        raise click.UsageError(
            "give either a TEXT (or - for standard input), --context ID or --file F"
        )
    if pool is not None and file is None:
        raise click.UsageError("--pool is for the texts of --file")
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        if file is not None:
            from queries.text_files import read_texts

            output.write_each(database.encode_batches(read_texts(file), pool, k))
            return
        if context is not None:
            answer = database.fires_in(context, k=k or _K)
        else:
            given = options.text_or_stdin(text or "", database.has_text)
            answer = database.fires_on(given, k=k or _K)
    output.write(answer)
