"""`featuredb ingest`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingesting import what_to_ingest


@click.command("ingest")
@options.database
@click.option(
    "--engine",
    type=click.Choice(["local", "processes", "ray"]),
    default="local",
    show_default=True,
    help="Who runs the model: this process, one process per GPU, or a Ray cluster.",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Workers of processes or ray. Default: one per GPU, or per four cores.",
)
@click.option(
    "--gpus-per-worker",
    metavar="X",
    type=float,
    default=1.0,
    show_default=True,
    help="GPUs that each Ray worker asks for; a fraction shares one.",
)
@click.option(
    "--ray-address",
    metavar="A",
    help="The Ray cluster. Default: RAY_ADDRESS, else one on this machine.",
)
@what_to_ingest
def command(db: str, told: dict[str, Any]) -> None:
    """Run a corpus through a model and SAEs; store all activations.

    Running the same command again continues one that was interrupted.
    """
    try:
        outcome = featuredb.ingest(db, progress=True, **told)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "interrupted; run the same command again to continue where it stopped"
        ) from error
    snapshot = outcome.snapshot
    documents = sum(corpus.n_documents for corpus in snapshot.corpora)
    activations = sum(snapshot.rows(sae.name) for sae in snapshot.saes)
    done = "done" if outcome.fresh else "nothing left to do"
    click.echo(
        f"{done}: {activations:,} activations over {documents:,} documents in {db}; "
        f"see it with `featuredb info {db}`",
        err=True,
    )
