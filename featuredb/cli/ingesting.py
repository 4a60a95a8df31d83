"""What `ingest` and `plan` are told: one set of options, with the defaults of `IngestOptions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, TypeVar, get_args

import click

from featuredb.store.values import Values
from ingest.options import IngestOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_DEFAULTS = {f.name: f.default for f in fields(IngestOptions) if f.default is not MISSING}
_COUNT = click.IntRange(min=1)


class _Told:
    """An option: what `click.option` is given, and the name of its value."""

    def __init__(self, *flags: str, **settings: Any) -> None:
        self._flags = flags
        self._settings = settings
        self.name = flags[-1].removeprefix("--").replace("-", "_")

    def option(self, **changes: Any) -> Callable[..., Any]:
        """The decorator, its settings changed."""
        return click.option(*self._flags, **(self._settings | changes))


def _option(flag: str, metavar: str, help: str, **more: Any) -> _Told:
    """An option with the default that `IngestOptions` gives it."""
    default = _DEFAULTS[flag.removeprefix("--").replace("-", "_")]
    return _Told(
        flag, metavar=metavar, default=default, show_default=default is not None, help=help, **more
    )


def _flag(flag: str, help: str) -> _Told:
    return _Told(flag, is_flag=True, help=help)


_OPTIONS = (
    _Told(
        "--corpus",
        metavar="SRC",
        required=True,
        help="A file, a folder, a glob, hf:DATASET, or - for text on standard input.",
    ),
    _Told("--model", metavar="M", required=True, help="The model: a folder, or a hub name."),
    _Told(
        "--sae",
        "saes",
        metavar="S",
        multiple=True,
        required=True,
        help="An SAE: a folder, a file, or a hub reference. May be given several times.",
    ),
    _Told(
        "--name",
        "names",
        metavar="N",
        multiple=True,
        help="What to call the SAE; once per --sae. Default: what its files say.",
    ),
    _option("--hook", "H", "Read the SAEs at this place of the model instead of their own."),
    _option("--hook-out", "H", "What the SAEs write belongs at this place: for transcoders."),
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
    _option(
        "--values",
        "V",
        "Round activations to float16, float32 or log8 (8 bits, 2.2 % off at most).",
        type=click.Choice(get_args(Values)),
    ),
    _flag("--exact", "The same as --values float32."),
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
        decorated = option.option()(decorated)
    return decorated  # type: ignore[no-any-return]


def what_to_add(*names: str, required: str) -> Callable[[Command], Command]:
    """Some of those options, for more in a database that there is.

    The command gets one `told`, only what was said: everything else the database decides.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_options(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in names}
            told = {name: value for name, value in given.items() if value not in (None, ())}
            for name in ("saes", "names"):
                if name in told:
                    told[name] = list(told[name])
            if told.pop("no_check", False):
                told["check"] = False
            return command(*args, told=told, **kwargs)

        decorated: Any = with_options
        for option in reversed(_OPTIONS):
            if option.name in names:
                settings = {"required": option.name == required, "show_default": False}
                decorated = option.option(default=None, **settings)(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


HOW_TO_COMPUTE = ("batch_tokens", "device", "memory", "no_check")
"""Options of every verb that runs the model."""

_NAMES = {field.name for field in fields(IngestOptions)}
