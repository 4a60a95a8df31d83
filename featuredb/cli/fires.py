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
_PER_TOKEN = 5


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
    help="Use many texts: one per line, or per record of a .jsonl, .csv or .parquet file. - is "
    "standard input. Lists all activations, per token.",
)
@click.option(
    "--text-column",
    metavar="NAME",
    default="text",
    show_default=True,
    help="With --file, what a record's text is called.",
)
@click.option(
    "--id-column",
    metavar="NAME",
    help="With --file, what a record's id is called. Default: id, where there is one.",
)
@click.option(
    "--pool",
    type=click.Choice(("max", "sum", "mean")),
    help="With --file, one row per feature and text: this, over the text's tokens.",
)
@click.option(
    "--per-token", is_flag=True, help="One line per token, with its features. -k: of each token."
)
@click.option("--token", metavar="N", type=int, help="The features of token N, from 0.")
@click.option(
    "--feature",
    metavar="F",
    shell_complete=completing.features,
    help="Show the text shaded by this feature.",
)
@click.option(
    "--by",
    type=click.Choice(("specificity", "activation", "mass")),
    default="specificity",
    show_default=True,
    help="Order: mass is the sum of a feature's activations over the text.",
)
@click.option("--min-density", metavar="X", type=float, help="Only features at least so frequent.")
@click.option("--max-density", metavar="X", type=float, help="Only features at most so frequent.")
@options.model
@options.limit(None, f"features (default: {_K}, {_PER_TOKEN} of each token; with --file all)")
@options.output
@click.pass_context
def command(
    ctx: click.Context,
    db: str,
    snapshot: int | None,
    text: str | None,
    context: int | None,
    file: str | None,
    text_column: str,
    id_column: str | None,
    pool: Pool | None,
    per_token: bool,
    token: int | None,
    feature: str | None,
    by: str,
    min_density: float | None,
    max_density: float | None,
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
    if file is None:
        options.refuse(ctx, ("text_column", "id_column"), "only a --file has columns")
    ways = [per_token, token is not None, feature is not None]
    if sum(ways) > 1:
        raise click.UsageError("give one of --per-token, --token and --feature")
    if file is not None and any(ways):
        raise click.UsageError("--per-token, --token and --feature are of one text, not of --file")
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        if file is not None:
            from queries.text_files import Columns, read_texts

            texts = read_texts(file, Columns(text_column, id_column))
            output.write_each(database.encode_batches(texts, pool, k))
            return
        if context is not None:
            answer = database.fires_in(context, k or _K, by, min_density, max_density)
        else:
            given = options.text_or_stdin(text or "", database.has_text)
            answer = database.fires_on(given, k or _K, by, min_density, max_density)
        if feature is not None:
            output.write(answer.shaded(feature))
            return
        if per_token or token is not None:
            each = k or (_K if token is not None else _PER_TOKEN)
            output.write(answer.by_token(each, token))
            return
    output.write(answer)
