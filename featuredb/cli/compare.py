"""`featuredb compare`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("compare")
@options.pinned_database
@options.feature
@click.argument("other", metavar="FEATURE", shell_complete=completing.features)
@options.limit(3, "contexts of each kind")
@options.output
def command(
    db: str, snapshot: int | None, feature: str, other: str, k: int, output: Output
) -> None:
    """Show two features side by side.

    The cosines of their directions, how often they fire on the same tokens and in the same
    documents, the tokens and contexts of both, of the first only and of the second only.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        output.write(database.compare(feature, other, k))
