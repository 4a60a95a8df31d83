"""`featuredb ingest`"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingesting import what_to_ingest

if TYPE_CHECKING:
    from ingest.operations.ingest import Outcome


@click.command("ingest")
@options.database
@options.engine
@what_to_ingest
def command(db: str, told: dict[str, Any], **engine: Any) -> None:
    """Run a corpus through a model and SAEs; store all activations.

    Running the same command again continues one that was interrupted.
    """
    report(db, lambda: featuredb.ingest(db, progress=True, **told, **engine))


def report(db: str, work: Callable[[], Outcome]) -> None:
    """Run an ingest and say how it ended."""
    try:
        outcome = work()
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
