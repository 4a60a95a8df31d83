"""`featuredb demo`"""

from __future__ import annotations

from typing import Any

import click


@click.command("demo")
@click.option("--path", metavar="DB", help="Where to make it; default demo.fdb in this folder.")
@click.option("--rebuild", is_flag=True, help="Make it anew where there is one already.")
@click.option(
    "--documents",
    metavar="N",
    type=click.IntRange(min=1),
    help="Ingest N documents; default what takes a few minutes.",
)
def command(**told: Any) -> None:
    """Make a small database of a real model and ask it questions."""
    from ingest.demo.run import run_demo

    run_demo(**{name: value for name, value in told.items() if value is not None})
