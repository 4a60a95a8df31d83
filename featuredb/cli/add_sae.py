"""`featuredb add-sae`"""

from __future__ import annotations

from typing import Any

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.ingest import report
from featuredb.cli.ingesting import HOW_TO_COMPUTE, what_to_add


@click.command("add-sae")
@options.database
@options.engine
@what_to_add("saes", "names", "hook", "hook_out", "model", *HOW_TO_COMPUTE, required="saes")
def command(db: str, told: dict[str, Any], **engine: Any) -> None:
    """Run more SAEs over the corpora that a database has.

    The corpora's own files are not needed. Running the same command again continues one that was
    interrupted.
    """
    report(db, lambda: featuredb.add_saes(db, progress=True, **told, **engine))
