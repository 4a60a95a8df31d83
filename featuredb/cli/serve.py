"""`featuredb serve`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options


@click.command("serve")
@options.pinned_database
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65_535),
    help="Port. 0: any that is free.",
    **options.default("serve", "port"),
)
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Address to listen at. Another than loopback lets other machines in.",
    **options.default("serve", "host"),
)
@options.model
@click.option(
    "--open/--no-open", "open_browser", default=True, help="Open a browser, or only print."
)
@click.option("--site", is_flag=True, help="DB is a folder that `featuredb site` wrote.")
def command(
    db: str,
    snapshot: int | None,
    port: int,
    host: str,
    model: str | None,
    open_browser: bool,
    site: bool,
) -> None:
    """See the database in a browser.

    Prints the address, which has a token in it, and answers until it is interrupted (Ctrl-C).
    Needs the extra featuredb[serve].
    """
    featuredb.serve(
        db,
        port=port,
        host=host,
        snapshot=snapshot,
        model=model,
        open_browser=open_browser,
        site=site,
    )
