"""Arguments and options that several verbs share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from featuredb.cli.output import CHOICES, Output

Command = TypeVar("Command", bound=Callable[..., Any])


def database(command: Command) -> Command:
    """DB, always the first argument. Whether it is one is for `featuredb.open` to say."""
    return click.argument("db", metavar="DB")(command)


def pinned_database(command: Command) -> Command:
    """DB, and `--snapshot`: which one of it."""
    number = click.option(
        "--snapshot",
        metavar="N",
        type=click.IntRange(min=1),
        help="Ask an older snapshot, see `featuredb snapshots`. Default: the newest.",
    )
    return database(number(command))


def engine(command: Command) -> Command:
    """Who runs the model."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


_ENGINE = (
    click.option(
        "--engine",
        type=click.Choice(["local", "processes", "ray"]),
        default="local",
        show_default=True,
        help="Who runs the model: this process, one process per GPU, or a Ray cluster.",
    ),
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(min=1),
        help="Workers of processes or ray. Default: one per GPU, or per four cores.",
    ),
    click.option(
        "--gpus-per-worker",
        metavar="X",
        type=float,
        default=1.0,
        show_default=True,
        help="GPUs that each Ray worker asks for; a fraction shares one.",
    ),
    click.option(
        "--ray-address",
        metavar="A",
        help="The Ray cluster. Default: RAY_ADDRESS, else one on this machine.",
    ),
)


def memory(command: Command) -> Command:
    """`--memory`: how much to work in."""
    return click.option(
        "--memory",
        metavar="SIZE",
        default="4GB",
        show_default=True,
        help="Host memory to work in.",
    )(command)


def feature(command: Command) -> Command:
    """FEATURE, as in `1234` or `sae/1234`. Whether there is one is for the database to say."""
    return click.argument("feature", metavar="FEATURE")(command)


def limit(default: int | None, what: str) -> Callable[[Command], Command]:
    """`-k`: how many rows."""
    return click.option(
        "-k",
        "k",
        metavar="N",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        help=f"How many {what}.",
    )


def output(command: Command) -> Command:
    """`--format` and `-o`; the command gets one `output`, an `Output`."""

    @wraps(command)
    def with_output(*args: Any, form: str | None, path: str | None, **kwargs: Any) -> Any:
        return command(*args, output=Output.choose(form, path), **kwargs)

    path_option = click.option(
        "-o",
        "--output",
        "path",
        metavar="FILE",
        help="Write to FILE; its ending picks the format where --format does not.",
    )
    form_option = click.option(
        "--format",
        "form",
        type=click.Choice(CHOICES),
        help="How to write the answer; default table.",
    )
    return form_option(path_option(with_output))  # type: ignore[return-value]


def text_or_stdin(argument: str) -> str:
    """The argument, or all of standard input where it is `-`, without the line feed it ends in:
    that is the shell's and no part of the text.

    Bytes that are no UTF-8 become lone surrogates, as Python has them in arguments, for the
    question to refuse.
    """
    if argument != "-":
        return argument
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")
