"""`featuredb labels`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.group("labels")
def command() -> None:
    """List, make, import and export labels."""


@command.command("list")
@options.pinned_database
@click.argument(
    "feature",
    metavar="[FEATURE]...",
    nargs=-1,
    callback=options.listed,
    shell_complete=completing.features,
)
@options.output
def list_labels(db: str, snapshot: int | None, feature: list[str] | None, output: Output) -> None:
    """List the labels of some features, or all labels.

    The preferred label of a feature, marked with a star, is what other answers show.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.labels(feature))


@command.command("import")
@options.database
@click.argument("file", metavar="FILE", shell_complete=completing.files)
@click.option(
    "--from",
    "format",
    metavar="FORMAT",
    help="csv, json, jsonl, parquet, arrow, neuronpedia, delphi, goodfire or openai. Default: by "
    "the ending.",
)
@click.option(
    "--sae",
    metavar="NAME",
    shell_complete=completing.saes,
    help="The SAE of rows that do not say which. Default: the only one.",
)
@click.option("--method", metavar="NAME", help="How labels were made that do not say it.")
def import_labels(
    db: str, file: str, format: str | None, sae: str | None, method: str | None
) -> None:
    """Store the labels in a file.

    A table needs a column feature_id, feature or index, and a column text, label, description or
    explanation. What else it may have is what export writes. Labels that are there already are
    skipped. Nothing is stored where a row is wrong.
    """
    done = featuredb.import_labels(db, file, format, sae=sae, method=method)
    skipped = f", {done.duplicates:,} were there already" if done.duplicates else ""
    scores = f" and {done.scores:,} scores" if done.scores else ""
    click.echo(f"{db}: stored {done.labels:,} labels{scores}{skipped}", err=True)


@command.command("make")
@options.database
def make_labels(db: str) -> None:
    """Label every feature by rules, without a language model.

    From the tokens it fires on, what stands beside them, the documents' metadata and the tokens it
    promotes. These labels are marked as automatic, and give way to any other.
    """
    done = featuredb.make_labels(db)
    same = f", {done.duplicates:,} are as they were" if done.duplicates else ""
    click.echo(f"{db}: made {done.labels:,} labels{same}", err=True)


@command.command("export")
@options.database
@click.argument("file", metavar="FILE", shell_complete=completing.files)
@click.option(
    "--to",
    "format",
    metavar="FORMAT",
    help="csv, json, jsonl, parquet, arrow, neuronpedia, delphi or goodfire. Default: by the "
    "ending.",
)
@click.option(
    "--sae", metavar="NAME", shell_complete=completing.saes, help="Only labels of this SAE."
)
def export_labels(db: str, file: str, format: str | None, sae: str | None) -> None:
    """Write the labels and their scores to a file."""
    if file == "-":
        raise click.UsageError("- is no file: for standard output write /dev/stdout, with --to")
    count = featuredb.export_labels(db, file, format, sae=sae)
    click.echo(f"{file}: wrote {count:,} labels", err=True)
