"""The `featuredb` command: imports verbs on use, maps errors to exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import click

from featuredb.cli.exit_codes import ExitCode
from featuredb.errors import FeatureDBError, StorageError, one_line
from featuredb.render.characters import neutralize
from featuredb.version import __version__

_WRITERS = ("demo", "ingest", "plan", "append", "add-sae", "import", "drop")
_QUESTIONS = (
    "info",
    "top",
    "sample",
    "silent",
    "find",
    "document",
    "feature",
    "near",
    "families",
    "coactive",
    "compare",
    "contrast",
    "fires",
    "search",
    "sql",
)
_EFFECTS = ("measure", "effect", "attribute", "ablate")
_LABELS = ("label", "labels", "explain")
_MONITORS = ("monitor",)
_CARE = ("snapshots", "compact", "vacuum", "verify", "export", "push", "pull", "completion")
_BROWSER = ("serve", "site", "card", "mcp")
_HELPERS = {"__main__", "completing", "exit_codes", "options", "output", "reference", "root"}


def _verbs() -> tuple[str, ...]:
    """Every module here that has a `command`. One that is not named above is a question."""
    modules = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    verbs = {name.replace("_", "-") for name in modules - _HELPERS}
    more = sorted(
        verbs.difference(_WRITERS, _QUESTIONS, _LABELS, _EFFECTS, _MONITORS, _BROWSER, _CARE)
    )
    return (*_WRITERS, *_QUESTIONS, *more, *_LABELS, *_EFFECTS, *_MONITORS, *_BROWSER, *_CARE)


VERBS = _verbs()
"""In the order of the help."""

_NO_LOOKUPS = (*_WRITERS, *_LABELS, *_EFFECTS, *_MONITORS, *_BROWSER, *_CARE)
LOOKUPS = tuple(verb for verb in VERBS if verb not in _NO_LOOKUPS)
_SPARED = (*LOOKUPS, *_BROWSER, *_LABELS, *_MONITORS)
"""Verbs that are given no pandas objects: see `_spare_pandas`."""

_INTERRUPTED = "Query interrupted"
"""What DuckDB raises a `RuntimeError` of in place of Python's own error, on Ctrl-C."""

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Verbs(click.Group):
    """A group that imports a verb's module on use and maps its errors to exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"featuredb.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            similar = get_close_matches(args[0], VERBS, cutoff=0.5)
            hint = f" Did you mean {' or '.join(similar)}?" if similar else " See featuredb --help."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        ours = not args and "args" not in kwargs  # otherwise a caller's process, such as a test
        if ours:
            _open_closed_streams()
        if ours and len(sys.argv) > 2 and sys.argv[1] in _SPARED:
            _spare_pandas()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FeatureDBError as error:
            _fail(ctx, str(error), error.exit_code)
        except click.NoSuchOption as error:
            raise _explained(error) from None
        except KeyboardInterrupt as error:
            _fail(ctx, str(error) or "interrupted", ExitCode.INTERRUPTED)
        except RuntimeError as error:
            if str(error) != _INTERRUPTED:
                raise
            _fail(ctx, "interrupted", ExitCode.INTERRUPTED)
        except BrokenPipeError:
            _forget_stdout()
            ctx.exit(ExitCode.BROKEN_PIPE)
        except OSError as error:
            if error.errno not in _STORAGE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            _fail(ctx, f"{where}{error.strerror}", StorageError.exit_code)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by what is typed, such as `top` or `labels import`."""
    context = click.Context(main, info_name="featuredb")
    for verb in VERBS:
        command = main.get_command(context, verb)
        if isinstance(command, click.Group):
            yield from ((f"{verb} {name}", each) for name, each in command.commands.items())
        elif command is not None:
            yield verb, command


def _explained(error: click.NoSuchOption) -> click.UsageError:
    """What was meant: the options that begin so, or an argument with a minus before it."""
    parameters = error.ctx.command.params if error.ctx else []
    if error.option_name.lstrip("-").isdigit():
        features = any("FEATURE" in (each.metavar or "") for each in parameters)
        what = (
            "is not a feature: they are numbered from 0"
            if features
            else "is read as an option: write -- before it"
        )
        return click.UsageError(f"{error.option_name} {what}", ctx=error.ctx)
    names = [n for parameter in parameters for n in (*parameter.opts, *parameter.secondary_opts)]
    begin = [name for name in names if name.startswith(error.option_name)]
    if not begin:
        return error
    return click.UsageError(f"{error.message} Did you mean {' or '.join(begin)}?", ctx=error.ctx)


class _NoPandas:
    """An import finder that hides pandas."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _spare_pandas() -> None:
    """Hide pandas while pyarrow looks for it.

    Before it makes its first array pyarrow imports pandas, 0.3 s and more than the rest of a
    lookup, only to know its types when it sees them. It looks once.
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        import pyarrow

        pyarrow.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)


def _open_closed_streams() -> None:
    """Put the null device where a shell has closed a stream (``>&-``), for which Python has None.

    Otherwise the next file that is opened gets its number, and what is printed.
    """
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    # The message may quote the corpus, which may contain escape sequences.
    click.echo(f"featuredb: {neutralize(one_line(message))}", err=True)
    ctx.exit(code)


def _forget_stdout() -> None:
    """Redirect standard output to null, else Python fails again when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _epilog() -> str:
    lines = "\n".join(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)
    return f"\b\nExit codes:\n{lines}"


@click.group(
    cls=Verbs,
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="featuredb", message="%(prog)s %(version)s")
def main() -> None:
    """Query a database of all activations of sparse-autoencoder features.

    Answers go to standard output, everything else to standard error. A FEATURE is a number where
    the database has one SAE, else SAE/NUMBER.
    """
