"""`featuredb append`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingest import report
from featuredb.cli.ingesting import HOW_TO_COMPUTE, what_to_add

_CORPUS = (
    "corpus",
    "text_column",
    "tokens_column",
    "messages_column",
    "id_column",
    "max_documents",
    "context_size",
    "stride",
    "max_tokens",
)


@click.command("append")
@options.database
@options.engine
@what_to_add(*_CORPUS, "model", "saes", *HOW_TO_COMPUTE, required="corpus")
def command(db: str, told: dict[str, Any], **engine: Any) -> None:
    """Add a corpus to a database: every SAE it has, over all of it.

    Model and SAEs are the database's own; --model and --sae, once for each, say where they are
    now if they have moved. Running the same command again continues one that was interrupted.
    """
    report(db, lambda: featuredb.append(db, progress=True, **told, **engine))
