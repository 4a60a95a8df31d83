"""`featuredb mcp`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import options


@click.command("mcp")
@options.pinned_database
@click.option(
    "--rows",
    metavar="N",
    type=click.IntRange(min=1),
    help="Most rows of an answer.",
    **options.default("mcp", "rows"),
)
@click.option(
    "--seconds",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Longest time that an answer takes.",
    **options.default("mcp", "seconds"),
)
@options.model
def command(db: str, snapshot: int | None, rows: int, seconds: float, model: str | None) -> None:
    """Let a language model ask, as an MCP server.

    It answers on standard input and output. Every question is a tool that only reads. A program
    that knows the Model Context Protocol starts this command itself. Needs the extra
    featuredb[mcp].
    """
    featuredb.mcp(db, rows=rows, seconds=seconds, snapshot=snapshot, model=model)
