"""`featuredb explain`"""

from __future__ import annotations

import signal
from typing import Any

import click
from click.core import ParameterSource

import featuredb
from featuredb.cli import completing, options
from featuredb.render.numbers import plural


@click.command("explain")
@options.database
@click.argument(
    "features",
    metavar="[FEATURE]...",
    nargs=-1,
    callback=options.listed,
    shell_complete=completing.features,
)
@click.option(
    "--endpoint",
    metavar="URL",
    required=True,
    help="OpenAI-compatible server, such as http://localhost:8000/v1.",
)
@click.option(
    "--model", "--model-name", "model_name", metavar="NAME", required=True, help="Model to ask."
)
@click.option(
    "--score",
    "scores",
    type=click.Choice(("detection", "fuzz", "intruder", "embedding")),
    multiple=True,
    help="Score the labels so. Repeat it for several.",
    **options.default("explain", "scores"),
)
@click.option("--no-scores", is_flag=True, help="Only labels.")
@click.option(
    "--existing", is_flag=True, help="Write no labels: score the preferred ones there are."
)
@click.option("--embedding-model", metavar="NAME", help="Model for the score embedding.")
@click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests per minute at most.",
)
@click.option(
    "--parallel",
    metavar="N",
    type=click.IntRange(min=1),
    help="Features at a time.",
    **options.default("explain", "parallel"),
)
@options.seed
@click.option(
    "--price",
    metavar="IN OUT",
    type=float,
    nargs=2,
    help="Price of a million tokens in, and out, for the estimate.",
)
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
def command(db: str, features: list[str] | None, no_scores: bool, **chosen: Any) -> None:
    """Let a language model label features, and score the labels.

    Default: all features that fire. Repeat the command to continue where it was stopped. The key is
    read from the environment variable OPENAI_API_KEY.
    """
    if no_scores:
        context = click.get_current_context()
        if context.get_parameter_source("scores") is not ParameterSource.DEFAULT:
            raise click.UsageError("--score and --no-scores cannot be combined.")
        chosen["scores"] = ()
    # What is answered is paid for: a job that is stopped keeps it, as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        done = featuredb.explain(db, features, **chosen, progress=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    left_out = "".join(
        f", {what}"
        for count, what in (
            (done.already, f"{plural(done.already, 'was', 'were')} there already"),
            (done.too_few, f"{plural(done.too_few, 'fires', 'fire')} too seldom"),
            (done.malformed, f"{plural(done.malformed, 'answer')} could not be read"),
            (done.retried, f"{plural(done.retried, 'request')} sent again"),
        )
        if count
    )
    click.echo(
        f"{db}: {plural(done.labels, 'label')} and {plural(done.scores, 'score')} from "
        f"{plural(done.requests, 'request')}{left_out}",
        err=True,
    )
