"""`featuredb drop`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options


@click.command("drop")
@options.database
@click.option("--sae", metavar="NAME", shell_complete=completing.saes, help="The SAE to drop.")
@click.option("--corpus", metavar="NAME", help="The corpus to drop, with its activations.")
@options.memory("drop")
def command(db: str, sae: str | None, corpus: str | None, memory: str) -> None:
    """Drop an SAE or a corpus from a database.

    `featuredb vacuum` frees the space once no reader needs it.
    """
    if (sae is None) == (corpus is None):
        raise click.UsageError("give either --sae NAME or --corpus NAME")
    snapshot = featuredb.drop(db, sae=sae, corpus=corpus, memory=memory, progress=True)
    what = f"SAE {sae}" if sae is not None else f"corpus {corpus}"
    click.echo(
        f"{db}: dropped {what}, now at snapshot {snapshot.number}; "
        f"free its space with `featuredb vacuum {db}`",
        err=True,
    )
