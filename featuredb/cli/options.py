"""Arguments and options shared by several commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

import click

from featuredb import api
from featuredb.cli import completing
from featuredb.cli.output import CHOICES, Output

Command = TypeVar("Command", bound=Callable[..., Any])


def arguments(function: str) -> list[str]:
    """The arguments of `featuredb.<function>`."""
    return list(signature(getattr(api, function)).parameters)


def default(function: str, argument: str) -> dict[str, Any]:
    """Settings of `click.option`: the default that `featuredb.<function>` has, or required."""
    value = signature(getattr(api, function)).parameters[argument].default
    if value is Parameter.empty:
        return {"required": True}
    return {"default": value, "show_default": value not in (None, "")}


def database(command: Command) -> Command:
    """DB, always the first argument. Not validated here."""
    return click.argument("db", metavar="DB", shell_complete=completing.files)(command)


def pinned_database(command: Command) -> Command:
    """DB and `--snapshot`."""
    number = click.option(
        "--snapshot",
        metavar="N",
        type=click.IntRange(min=1),
        help="Use an older snapshot, see `featuredb snapshots`. Default: the newest.",
    )
    return database(number(command))


def listed(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[str] | None:
    """Callback of an option or argument that may be given several times: None for not at all."""
    return list(given) or None


def memory(function: str) -> Callable[[Command], Command]:
    """`--memory`, with the default of `featuredb.<function>`."""
    return click.option(
        "--memory", metavar="SIZE", help="Memory limit.", **default(function, "memory")
    )


def model(command: Command) -> Command:
    """`--model`, where new text finds the database's model."""
    return click.option(
        "--model",
        metavar="M",
        shell_complete=completing.files,
        help="Where the database's model is now, for new text: a folder, a GGUF file or a hub "
        "name. Default: where it was.",
    )(command)


def feature(command: Command) -> Command:
    """FEATURE, such as `1234` or `sae/1234`. Not validated here."""
    return click.argument("feature", metavar="FEATURE", shell_complete=completing.features)(command)


def features(argument: str) -> Callable[[Command], Command]:
    """One feature or several, under the name that the function has for them."""
    return click.argument(
        argument,
        metavar="FEATURE...",
        nargs=-1,
        required=True,
        shell_complete=completing.features,
    )


def limit(default: int | None, what: str) -> Callable[[Command], Command]:
    """`-k`, the number of rows."""
    return click.option(
        "-k",
        "k",
        metavar="N",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        help=f"Number of {what}.",
    )


def seed(command: Command) -> Command:
    """`--seed`, what a draw depends on."""
    return click.option(
        "--seed",
        metavar="N",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Draw other contexts.",
    )(command)


def window(command: Command) -> Command:
    """`--window`, the tokens shown around a peak."""
    return click.option(
        "--window",
        metavar="N",
        type=click.IntRange(min=0),
        default=16,
        show_default=True,
        help="Tokens shown on each side of the peak.",
    )(command)


def output(command: Command) -> Command:
    """`--format` and `-o`, passed to the command as one `Output`."""

    @wraps(command)
    def with_output(*args: Any, form: str | None, path: str | None, **kwargs: Any) -> Any:
        return command(*args, output=Output.choose(form, path), **kwargs)

    path_option = click.option(
        "-o",
        "--output",
        "path",
        metavar="FILE",
        shell_complete=completing.files,
        help="Write to FILE. Its extension sets the format unless --format is given.",
    )
    form_option = click.option(
        "--format",
        "form",
        type=click.Choice(CHOICES),
        help="Output format. Default: table.",
    )
    return form_option(path_option(with_output))  # type: ignore[return-value]


def refuse(ctx: click.Context, names: Iterable[str], because: str) -> None:
    """Raise `click.UsageError` if one of these options is given: they mean nothing here."""
    for name in sorted(names):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "-k" if name == "k" else "--" + name.replace("_", "-")
            raise click.UsageError(f"{because}: leave out {option}")


def text_or_stdin(argument: str, as_it_is: Callable[[str], bool] = lambda _: False) -> str:
    """The argument, or standard input if it is `-`, without the final line feed.

    as_it_is: says of all of standard input whether it is meant with it. Invalid UTF-8 becomes lone
    surrogates, as in Python's own arguments. Queries refuse them.
    """
    if argument != "-":
        return argument
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return text if as_it_is(text) else text.removesuffix("\n")
