"""`featuredb document`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("document")
@options.pinned_database
@click.argument("document_id", metavar="[ID]", required=False, type=int)
@click.option(
    "--context", "context_id", metavar="ID", type=int, help="The document of this context."
)
@click.option(
    "--feature",
    metavar="F",
    shell_complete=completing.features,
    help="Shade the text by this feature.",
)
@options.output
def command(
    db: str,
    snapshot: int | None,
    document_id: int | None,
    context_id: int | None,
    feature: str | None,
    output: Output,
) -> None:
    """Show a whole document, and a feature's activations on it.

    Other formats have a row per token: its characters, from char_start to before char_end, and the
    feature's activation, null where none was recorded.
    """
    if (document_id is None) == (context_id is None):
        raise click.UsageError("give a document's ID, or --context ID")
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.document(document_id, feature, context_id=context_id)
    output.write(answer)
