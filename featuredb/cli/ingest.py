"""`featuredb ingest`, and the options that it shares with `plan`, `append` and `add-sae`"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.options import Command
from featuredb.store.values import Values

if TYPE_CHECKING:
    from featuredb.store.outcomes import Outcome

_COUNT = click.IntRange(min=1)


def _option(name: str, metavar: str, help: str, *flag: str, **settings: Any) -> partial[Any]:
    """An option by the name of its argument. The flag is the same unless given."""
    flags = (*(flag or [f"--{name.replace('_', '-')}"]), name)
    return partial(click.option, *flags, metavar=metavar, help=help, **settings)


def _several(name: str, metavar: str, help: str, **settings: Any) -> partial[Any]:
    """An option that may be repeated. Its flag is the singular."""
    collect = {"multiple": True, "callback": lambda _context, _option, values: [*values] or None}
    return _option(name, metavar, help, f"--{name.removesuffix('s')}", **collect, **settings)


def _flag(name: str, help: str) -> partial[Any]:
    return partial(click.option, f"--{name.replace('_', '-')}", is_flag=True, help=help)


_OPTIONS: dict[str, partial[Any]] = {
    "corpus": _option(
        "corpus",
        "SRC",
        "A file, a folder, a glob, hf:DATASET, or - for standard input.",
        shell_complete=completing.files,
    ),
    "model": _option(
        "model", "M", "The model: a folder or a hub name.", shell_complete=completing.files
    ),
    "saes": _several(
        "saes",
        "S",
        "An SAE: a folder, a file or a hub reference. Repeatable.",
        shell_complete=completing.files,
    ),
    "names": _several("names", "N", "Name of the SAE, once per --sae. Default: from its files."),
    "hook": _option("hook", "H", "Hook point to read the SAEs at, instead of their own."),
    "hook_out": _option("hook_out", "H", "Hook point a transcoder's output should match."),
    "text_column": _option("text_column", "C", "Column with the document's text."),
    "tokens_column": _option("tokens_column", "C", "Column with token ids, instead of text."),
    "messages_column": _option(
        "messages_column", "C", "Column with chat messages, instead of text."
    ),
    "id_column": _option("id_column", "C", "Column with the document's id."),
    "corpus_name": _option(
        "corpus_name",
        "NAME",
        "Name of the corpus, for --where \"corpus = 'NAME'\". Default: after its source.",
    ),
    "skip_stored": _flag("skip_stored", "Leave out documents whose texts are stored already."),
    "max_documents": _option("max_documents", "N", "Stop after N documents.", type=_COUNT),
    "context_size": _option(
        "context_size",
        "N",
        "Tokens per context, including BOS. Default: the SAE's own, else 256.",
        type=click.IntRange(min=2),
    ),
    "bos": partial(
        click.option,
        "--bos/--no-bos",
        "bos",
        help="Whether contexts begin with BOS. Default: the database's, else by the SAEs' files "
        "or the tokenizer.",
    ),
    "stride": _option(
        "stride",
        "N",
        "Tokens between the starts of two contexts. Default: no overlap.",
        type=_COUNT,
    ),
    "max_tokens": _option(
        "max_tokens", "N", "Stop after the document that reaches N tokens.", type=_COUNT
    ),
    "batch_tokens": _option(
        "batch_tokens", "N", "Tokens per forward pass. Default: by device.", type=_COUNT
    ),
    "device": _option("device", "D", "Device: auto, cpu, cuda, cuda:1, mps."),
    "dtype": _option("dtype", "T", "What the model computes in: auto, float32, bfloat16, float16."),
    "encode_dtype": _option(
        "encode_dtype",
        "T",
        "What SAEs encode in: float32. Faster: bfloat16x3 on an NVIDIA GPU, screened on a CPU.",
        type=click.Choice(["float32", "bfloat16x3", "screened"]),
    ),
    "torch_compile": _flag(
        "torch_compile", "Compile the model's layers. Sums are then rounded otherwise."
    ),
    "memory": _option("memory", "SIZE", "Host memory to aim for."),
    "sink_threshold": _option(
        "sink_threshold",
        "X",
        "Positions of more than X times the median norm are sinks. Activations at sinks are "
        "not stored.",
        type=float,
    ),
    "keep_sinks": _flag("keep_sinks", "Store activations at sinks too."),
    "keep_bos": _flag("keep_bos", "Store activations at BOS too."),
    "values": _option(
        "values",
        "V",
        "Round activations to float16, float32 or log8 (8 bits, error at most 2.2 %).",
        type=click.Choice(get_args(Values)),
    ),
    "exact": _flag("exact", "Same as --values float32."),
    "check": partial(
        click.option,
        "--no-check",
        "check",
        is_flag=True,
        callback=lambda _context, _option, value: not value,
        help="Skip the check that the SAEs explain the model's activations.",
    ),
    "engine": partial(
        click.option,
        "--engine",
        type=click.Choice(("local", "processes", "ray")),
        help="Where to run: this process, one process per GPU, or a Ray cluster.",
    ),
    "workers": _option(
        "workers",
        "N",
        "Workers of processes or ray. Default: one per GPU, or per four cores.",
        type=_COUNT,
    ),
    "gpus_per_worker": _option(
        "gpus_per_worker", "X", "GPUs each Ray worker requests. A fraction shares one.", type=float
    ),
    "ray_address": _option(
        "ray_address", "A", "The Ray cluster. Default: RAY_ADDRESS, else one on this machine."
    ),
}
"""By the argument of `featuredb.ingest`."""


def arguments_of(function: str) -> Callable[[Command], Command]:
    """Those options that are arguments of `featuredb.<function>`, with its defaults."""

    def decorate(command: Command) -> Command:
        for name in reversed(options.arguments(function)):
            if name in _OPTIONS:
                command = _OPTIONS[name](**_settings(function, name))(command)
        return command

    return decorate


def _settings(function: str, name: str) -> dict[str, Any]:
    settings = options.default(function, name)
    return {} if isinstance(settings.get("default"), bool) else settings


def report(db: str, work: Callable[[], Outcome]) -> None:
    """Run an ingest and print how it ended."""
    try:
        outcome = work()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "interrupted; run the same command again to continue where it stopped"
        ) from error
    snapshot = outcome.snapshot
    documents = sum(corpus.n_documents for corpus in snapshot.corpora)
    activations = sum(snapshot.rows(sae.name) for sae in snapshot.saes)
    done = "done" if outcome.fresh else "nothing left to do"
    click.echo(
        f"{done}: {activations:,} activations over {documents:,} documents in {db}; "
        f"see it with `featuredb info {db}`",
        err=True,
    )


@click.command("ingest")
@options.database
@arguments_of("ingest")
def command(db: str, **arguments: Any) -> None:
    """Run a corpus through a model and SAEs and store all activations.

    Resumable: after an interruption, run the same command again.
    """
    report(db, lambda: featuredb.ingest(db, progress=True, **arguments))
