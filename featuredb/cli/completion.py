"""`featuredb completion`"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell: bash, zsh or fish.

    bash: add `eval "$(featuredb completion bash)"` to ~/.bashrc. zsh: the same with zsh, in
    ~/.zshrc. fish: write the output to ~/.config/fish/completions/featuredb.fish.
    """
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(context.find_root().command, {}, "featuredb", "_FEATUREDB_COMPLETE").source())
