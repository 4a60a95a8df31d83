"""`python -m tests.crashes --kills 200`: kill writers many times and count the outcomes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from tests.crashes.harness import kill_at_random
from tests.crashes.steps import Scene


@click.command()
@click.option("--kills", default=200, show_default=True, help="How many writers to kill.")
@click.option("--seed", default=0, show_default=True, help="Which random points.")
def main(kills: int, seed: int) -> None:
    """Kill writers at random points and print what readers saw."""
    with tempfile.TemporaryDirectory(prefix="featuredb-crashes-") as folder:
        scene = Scene.make(Path(folder))
        click.echo(kill_at_random(scene, Path(folder), kills, seed))


if __name__ == "__main__":
    main()
