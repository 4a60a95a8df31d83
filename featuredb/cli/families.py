"""`featuredb families`"""

from __future__ import annotations

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output


@click.command("families")
@options.pinned_database
@click.argument("feature", metavar="[FEATURE]", required=False, shell_complete=completing.features)
@click.option(
    "--min-coverage",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Of a child's tokens, how many its parent has too, beyond chance.",
)
@click.option(
    "--min-gain",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Of what a child writes, how much its parent writes already.",
)
@click.option(
    "--min-count",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Leave out children that fire less often.",
)
@options.limit(None, "pairs. Default: all")
@options.output
def command(
    db: str,
    snapshot: int | None,
    feature: str | None,
    min_coverage: float,
    min_gain: float,
    min_count: int,
    k: int | None,
    output: Output,
) -> None:
    """List parents, children and duplicates of a feature, or of all.

    A parent fires wherever its child does, and elsewhere too, and its direction carries part of
    what the child writes. Firing together alone would give false parents. Within SAEs, and between
    those of one hook.
    """
    with featuredb.open(db, snapshot=snapshot) as database:
        answer = database.families(
            feature, k, min_coverage=min_coverage, min_gain=min_gain, min_count=min_count
        )
    output.write(answer)
