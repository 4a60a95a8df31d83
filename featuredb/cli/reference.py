"""The table of commands, generated from the commands.

`python -m featuredb.cli.reference --write docs/commands.md` updates what is between the markers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from featuredb.cli.root import commands, main

BEGIN = "<!-- commands: made by `python -m featuredb.cli.reference --write docs/commands.md` -->"
END = "<!-- end of commands -->"


def markdown() -> str:
    """One row per command: usage, summary, options."""
    context = click.Context(main, info_name="featuredb")
    lines = ["| command | what it does | options |", "| --- | --- | --- |"]
    for verb, command in commands():
        arguments = [p.make_metavar(context) for p in command.params if _is_argument(p)]
        options = [_option(p, context) for p in command.params if isinstance(p, click.Option)]
        call = " ".join([verb, *arguments])
        cells = (f"`{call}`", command.get_short_help_str(200), " ".join(f"`{o}`" for o in options))
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def renew(text: str) -> str:
    """The document with the part between the markers replaced. Raises `ValueError` without them."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document needs the lines {BEGIN} and {END}")
    return f"{head}{begin}\n{markdown()}{end}{tail}"


def _is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


def _option(option: click.Option, context: click.Context) -> str:
    flag = min(option.opts, key=len) if option.name == "path" else option.opts[0]
    if option.is_flag:
        return "|".join([flag, *option.secondary_opts])
    if isinstance(option.type, click.Choice):
        return f"{flag} {'|'.join(map(str, option.type.choices))}"
    return f"{flag} {option.make_metavar(context)}"


@click.command()
@click.option("--write", "path", metavar="FILE", help="Update the table in FILE.")
@click.option("--check", "checked", metavar="FILE", help="Fail if the table in FILE is old.")
def run(path: str | None, checked: str | None) -> None:
    """Print the table of commands, or renew or check it in a file."""
    if path is not None:
        Path(path).write_text(renew(Path(path).read_text(encoding="utf-8")), encoding="utf-8")
    elif checked is not None:
        text = Path(checked).read_text(encoding="utf-8")
        if renew(text) != text:
            sys.exit(f"{checked} shows old commands: run featuredb.cli.reference --write {checked}")
    else:
        click.echo(markdown(), nl=False)


if __name__ == "__main__":
    run()
