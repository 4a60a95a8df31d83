"""`featuredb card`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.store.files.atomic import output_in_place


@click.command("card")
@options.pinned_database
@options.features("features")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=completing.files,
    help="Write to FILE, such as card.html.",
)
def command(db: str, snapshot: int | None, features: tuple[str, ...], output: str | None) -> None:
    """Write cards of features as one HTML file.

    The file has no script and fetches nothing: mail it, print it, or put it beside a paper.
    """
    if output == "":
        raise click.UsageError("-o is empty: give it a file")
    text = featuredb.card(db, features, snapshot=snapshot).encode()
    if output is None:
        sys.stdout.buffer.write(text)
        return
    with output_in_place(Path(output)) as temporary:
        temporary.write_bytes(text)
