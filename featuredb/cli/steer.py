"""`featuredb steer`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output
from featuredb.errors import StorageError, first_line

if TYPE_CHECKING:
    from featuredb.steering.swept import Swept


@click.command("steer")
@options.pinned_database
@click.argument("prompt", metavar="[PROMPT|-]...", nargs=-1)
@click.option(
    "--set",
    "edits",
    metavar="EDIT",
    multiple=True,
    required=True,
    help="F=10x clamps a feature to ten times its stored maximum, F=q0.99 to a quantile, F=5 to a "
    "number; F+=V adds, F*=V scales, F=0 ablates. '@ WHERE' limits it: prompt, generated, -2:, "
    "'token \" the\"', 'role user', '12 > 0.5x', 'not bos', joined by and, or commas. Repeatable.",
)
@click.option(
    "--file",
    metavar="F",
    shell_complete=completing.files,
    help="Prompts from a file: one per line, or per record of a .jsonl, .csv or .parquet file with "
    "a column text.",
)
@click.option("--chat", is_flag=True, help="Put each PROMPT through the chat template, as a user.")
@click.option(
    "--max-new-tokens",
    metavar="N",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Most tokens that are generated.",
)
@click.option(
    "--temperature",
    metavar="T",
    type=float,
    default=0.0,
    show_default=True,
    help="0 takes the most likely token each time. Otherwise tokens are drawn.",
)
@click.option(
    "--top-p",
    metavar="P",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw from the most likely tokens that together have this probability.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Draw other tokens and other controls.",
)
@click.option(
    "--method",
    type=click.Choice(("code", "direction", "project")),
    default="code",
    show_default=True,
    help="code keeps what the SAE does not explain. direction adds the decoder direction. project "
    "takes the component along it for the activation.",
)
@click.option("--push-out", is_flag=True, help="In a top-k SAE a forced feature pushes one out.")
@click.option(
    "--effect/--no-effect", default=True, show_default=True, help="Measure what the edits change."
)
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Run the edits sign-flipped, on a random feature, and as noise, too.",
)
@click.option(
    "--sweep",
    metavar="V,V,…",
    help="Steer at each of these strengths instead, such as 0,1,2,5,10x, and say which works.",
)
@click.option("--plot", metavar="FILE", shell_complete=completing.files, help="Draw the sweep.")
@click.option(
    "--encoder",
    metavar="M",
    shell_complete=completing.files,
    help="A sentence encoder for the sweep. Default: all-MiniLM-L6-v2 where it is cached.",
)
@click.option(
    "--judge",
    metavar="URL",
    help="An OpenAI-compatible endpoint that rates the sweep's texts. Key: OPENAI_API_KEY.",
)
@click.option("--judge-model", metavar="NAME", help="The judge's model.")
@click.option(
    "--export",
    metavar="FILE",
    shell_complete=completing.files,
    help="Write the edits instead: .safetensors, .gguf for llama.cpp, .pt for lm-eval-harness.",
)
@click.option("--other-model", is_flag=True, help="Allow a --model that is not the database's.")
@options.model
@options.output
def command(
    db: str,
    snapshot: int | None,
    prompt: tuple[str, ...],
    edits: tuple[str, ...],
    file: str | None,
    chat: bool,
    model: str | None,
    output: Output,
    export: str | None,
    sweep: str | None,
    plot: str | None,
    encoder: str | None,
    judge: str | None,
    judge_model: str | None,
    effect: bool,
    controls: bool,
    **how: Any,
) -> None:
    """Generate text with features edited and without.

    The model goes on from each PROMPT, and what the edits change is measured. Needs
    featuredb[ingest]. On a terminal the steered text is shown as it is written.
    """
    if export is not None:
        if prompt or file or sweep:
            raise click.UsageError("--export writes the edits alone: leave PROMPT and --sweep out")
        with featuredb.open(db, snapshot=snapshot, model=model) as database:
            database.export_edits(edits, export, method=how["method"])
        return
    texts = [options.text_or_stdin(each) for each in prompt]
    if file is not None:
        from queries.text_files import read_texts

        texts += [text for _, text in read_texts(file)]
    if not texts:
        raise click.UsageError("give a PROMPT (or - for standard input), --file F or --export F")
    given: Any = [[{"role": "user", "content": text}] for text in texts] if chat else texts
    if sweep is None and (plot or encoder or judge or judge_model):
        raise click.UsageError("--plot, --encoder, --judge and --judge-model are of a --sweep")
    streams = len(texts) == 1 and sys.stderr.isatty()
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        if sweep is not None:
            how |= {"encoder": encoder, "judge": judge, "judge_model": judge_model}
            swept = database.sweep(given, edits, sweep, **how)
            output.write(swept)
            if plot is not None:
                _draw(swept, plot)
            return
        show = _show if streams else None
        try:
            answer = database.steer(
                given, edits, effect=effect, controls=controls, stream=show, **how
            )
        except KeyboardInterrupt:
            if streams:
                click.echo(err=True)  # ends the line of the text
            raise
    output.write(answer)


def _draw(swept: Swept, path: str) -> None:
    """Into a picture, whose format its ending says."""
    figure: Any = swept.plot().figure
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot write {path}: {first_line(error)}") from error


def _show(text: str) -> None:
    """A piece of the steered text, beside the answer on standard output."""
    from featuredb.render.characters import neutralize

    click.echo("\n".join(map(neutralize, text.split("\n"))), nl=False, err=True)
