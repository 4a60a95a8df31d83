"""What `ingest` and `plan` are told: one set of options, with the defaults of `IngestOptions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, TypeVar

import click

from ingest.options import IngestOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_DEFAULTS = {f.name: f.default for f in fields(IngestOptions) if f.default is not MISSING}
_COUNT = click.IntRange(min=1)


def _option(flag: str, metavar: str, help: str, **more: Any) -> Callable[..., Any]:
    """An option with the default that `IngestOptions` gives it."""
    default = _DEFAULTS[flag.removeprefix("--").replace("-", "_")]
    return click.option(
        flag, metavar=metavar, default=default, show_default=default is not None, help=help, **more
    )


def _flag(flag: str, help: str) -> Callable[..., Any]:
    return click.option(flag, is_flag=True, help=help)


_OPTIONS = (
    click.option(
        "--corpus",
        metavar="SRC",
        required=True,
        help="A file, a folder, a glob, hf:DATASET, or - for text on standard input.",
    ),
    click.option("--model", metavar="M", required=True, help="The model: a folder, or a hub name."),
    click.option(
        "--sae",
        "saes",
        metavar="S",
        multiple=True,
        required=True,
        help="An SAE: a folder, a file, or a hub reference. May be given several times.",
    ),
    click.option(
        "--name",
        "names",
        metavar="N",
        multiple=True,
        help="What to call the SAE; once per --sae. Default: what its files say.",
    ),
    _option("--hook", "H", "Read the SAEs at this place of the model instead of their own."),
    _option("--text-column", "C", "The column that holds a document's text."),
    _option("--tokens-column", "C", "A column of token ids to read instead of text."),
    _option("--messages-column", "C", "A column of chat messages to read instead of text."),
    _option("--id-column", "C", "The column that holds a document's id."),
    _option("--max-documents", "N", "Stop after N documents.", type=_COUNT),
    _option(
        "--context-size",
        "N",
        "Tokens per context, BOS included. Default: the SAE's own, else 256.",
        type=click.IntRange(min=2),
    ),
    _option(
        "--stride",
        "N",
        "Tokens between the starts of two contexts. Default: no overlap.",
        type=_COUNT,
    ),
    _option("--max-tokens", "N", "Stop after the document that reaches N tokens.", type=_COUNT),
    _option(
        "--batch-tokens",
        "N",
        "Tokens per forward pass. Default: what suits the device.",
        type=_COUNT,
    ),
    _option("--device", "D", "Where to compute: auto, cpu, cuda, cuda:1, mps."),
    _option("--dtype", "T", "What the model computes in: auto, float32, bfloat16, float16."),
    _option("--memory", "SIZE", "Host memory to aim for."),
    _option(
        "--sink-threshold",
        "X",
        "Positions of more than X times the median norm are sinks; their activations are left out.",
        type=float,
    ),
    _flag("--keep-sinks", "Store the activations at sinks too."),
    _flag("--keep-bos", "Store the activations at BOS too."),
    _flag("--exact", "Store activations as float32 instead of float16."),
    _flag("--no-check", "Do not check first that the SAEs explain the model's activations."),
)


def what_to_ingest(command: Command) -> Command:
    """Every option of an ingest; the command gets one `told`, the arguments of `IngestOptions`."""

    @wraps(command)
    def with_options(
        *args: Any, saes: tuple[str, ...], names: tuple[str, ...], no_check: bool, **kwargs: Any
    ) -> Any:
        told = {name: kwargs.pop(name) for name in _NAMES & kwargs.keys()}
        told |= {"saes": list(saes), "names": list(names) or None, "check": not no_check}
        return command(*args, told=told, **kwargs)

    decorated: Any = with_options
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


_NAMES = {field.name for field in fields(IngestOptions)}
