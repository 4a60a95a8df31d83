"""`featuredb demo`"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import featuredb
from featuredb.cli import completing, options

if TYPE_CHECKING:
    from featuredb.database import Database

PHRASE = "music"
FEATURE = 3722
"""The first that `about` finds for the phrase. Chosen by looking: its tokens, its contexts and what
fires with it are about music, and its weaker half shows what else it answers to."""

SENTENCE = "The orchestra played a symphony in the concert hall."


QUESTION = (
    "SELECT token, count(f.activation) AS fires, count(*) AS occurs, "
    "round(avg(f.activation), 1) AS strength "
    f"FROM tokens LEFT JOIN feature_activations({FEATURE}) AS f USING (context_id, token_index) "
    "WHERE token IN (SELECT unnest(top_tokens)['token'] FROM features "
    f"WHERE feature_id = {FEATURE}) GROUP BY token ORDER BY fires DESC, token LIMIT 6"
)


@click.command("demo")
@click.option(
    "--path",
    metavar="DB",
    shell_complete=completing.files,
    help="Where to create it.",
    **options.default("demo", "path"),
)
@click.option("--rebuild", is_flag=True, help="Delete an existing demo database first.")
@click.option(
    "--documents",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of documents to ingest. The default takes a few minutes.",
    **options.default("demo", "documents"),
)
def command(path: str, rebuild: bool, documents: int) -> None:
    """Create a small database of a real model and query it."""
    with featuredb.demo(path, documents=documents, rebuild=rebuild) as database:
        _show(database, Path(path))


def _show(db: Database, root: Path) -> None:
    """Print how a feature is found, its contexts, what fires with it and on a sentence, and SQL."""
    from rich.console import Console
    from rich.markup import escape

    out = Console(highlight=False)
    program = _program()
    out.rule(f'{program} about {root} "{PHRASE}" --by evidence')
    db.about(PHRASE, k=5, by="evidence").print(out)
    out.rule(f"{program} top {root} {FEATURE}")
    db.top_contexts(FEATURE, k=3, window=10).print(out)
    out.rule(f"{program} sample {root} {FEATURE} --bins 5 -k 5")
    db.sample_contexts(FEATURE, k=5, bins=5, window=10).print(out)
    out.rule(f"{program} coactive {root} {FEATURE} --unit document")
    db.coactive(FEATURE, k=5, unit="document").print(out)
    out.rule(f'{program} fires {root} "{SENTENCE}"')
    db.fires_on(SENTENCE, k=5).print(out)
    out.rule("in SQL: how reliably does it fire on each of its tokens?")
    out.print(f'{program} sql {root} "{QUESTION}"', soft_wrap=True)
    featuredb.Rows(db.sql(QUESTION).to_arrow_table()).print(out)
    out.rule("go on with")
    for line, meaning in _next_steps(program, root):
        out.print(f"[dim]{meaning}[/dim]\n  {escape(line)}", soft_wrap=True)


def _next_steps(program: str, root: Path) -> list[tuple[str, str]]:
    return [
        (f"{program} feature {root} {FEATURE}", "everything known about one feature"),
        (f"{program} search {root} California", "features by the words they fire on"),
        (f"{program} top {root} {FEATURE} --where \"topic = 'People'\"", "top contexts, filtered"),
        (f"{program} silent {root} {FEATURE}", "its tokens where it does not fire"),
        (f"{program} compare {root} {FEATURE} 2761", "two features side by side"),
        (f'{program} fires {root} "a sentence of your own"', "what fires on new text"),
        (
            f'{program} sql {root} "SELECT feature_id, density, top_tokens[1] FROM features '
            'ORDER BY density DESC LIMIT 10"',
            "anything else, in SQL (docs/cookbook.md)",
        ),
        (
            f"{Path(program).with_name('python')}",
            f"then: import featuredb; db = featuredb.open('{root}'); db.top_contexts({FEATURE})",
        ),
        (f"{program} serve {root}", "all of it in a browser"),
    ]


def _program() -> str:
    """How this command was called, so that the printed commands can be pasted."""
    called = Path(sys.argv[0])
    if called.name != "featuredb":
        return "featuredb"
    if shutil.which("featuredb") == str(called):
        return "featuredb"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)
