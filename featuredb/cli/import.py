"""`featuredb import`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import completing, options


@click.command("import")
@options.database
@click.argument("source", metavar="SOURCE", shell_complete=completing.files)
@click.option(
    "--from",
    "format",
    metavar="FORMAT",
    required=True,
    help="goodfire, delphi, neuronpedia, parquet, csv or arrow.",
)
@click.option("--name", metavar="NAME", help="What to call the SAE.")
@click.option(
    "--hook",
    metavar="H",
    help="Where the SAE reads.",
    **options.default("import_activations", "hook"),
)
@click.option(
    "--model-name",
    metavar="M",
    help="Name of the language model.",
    **options.default("import_activations", "model_name"),
)
@click.option(
    "--features",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many features the SAE has. Default: up to the last that SOURCE shows.",
)
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    shell_complete=completing.files,
    help="The tokenizer, where SOURCE has only the ids of tokens (delphi).",
)
@click.option(
    "--values",
    type=click.Choice(("float16", "float32", "log8")),
    help="What activations are rounded to. float32 keeps them.",
    **options.default("import_activations", "values"),
)
@options.memory("import_activations")
def command(db: str, source: str, format: str, **chosen: Any) -> None:
    """Make a database of activations that another program wrote.

    No model and no SAE is run. All questions about what is stored are answered as in any database.
    Repeat the command to continue after an interruption.
    """
    done = featuredb.import_activations(db, source, format, **chosen, progress=True)
    (sae,) = done.snapshot.saes
    there = "" if done.fresh else ", which was there already"
    click.echo(
        f"{db}: {done.snapshot.rows(sae.name):,} activations of {sae.d_sae:,} features{there}",
        err=True,
    )
