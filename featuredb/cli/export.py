"""`featuredb export`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options


@click.command("export")
@options.pinned_database
@click.argument("file", metavar="OUT", shell_complete=completing.files)
@click.option(
    "--to",
    "format",
    metavar="FORMAT",
    required=True,
    help="goodfire, delphi, neuronpedia, circuit-tracer, parquet, csv or arrow.",
)
@click.option(
    "--sae",
    metavar="NAME",
    shell_complete=completing.saes,
    help="Which SAE. Default: the only one.",
)
def command(db: str, snapshot: int | None, file: str, format: str, sae: str | None) -> None:
    """Write the activations of an SAE for another program.

    neuronpedia and circuit-tracer get statistics and examples, the others every activation.
    """
    count = featuredb.export_activations(db, file, format, sae=sae, snapshot=snapshot)
    what = "examples" if format in ("neuronpedia", "circuit-tracer") else "activations"
    click.echo(f"{file}: {count:,} {what}", err=True)
