"""The demo: a real model, a real SAE and a real corpus made into a database, then asked."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import featuredb
from featuredb.errors import IngestError
from featuredb.render.progress import log, shown
from featuredb.store.files.atomic import remove_tree
from ingest.demo.fetch import model_folder, wikipedia_corpus
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from queries.answers import Rows

SAE_FOLDER = Path(__file__).with_name("sae")
FEATURE = 1927
"""California: see the SAE's model card."""

NAME = "layer13"
SENTENCE = "The Golden Gate Bridge opened in 1937."
DOCUMENTS = 3_000
"""Summaries ingested unless told otherwise: 305,000 tokens, one minute on two cores with bfloat16
units, some six on two without."""


def run_demo(
    path: str | Path = "demo.fdb", *, documents: int = DOCUMENTS, rebuild: bool = False
) -> None:
    """Make the demo database at `path`, or reuse it, then show what it answers.

    The answers go to standard output, progress to standard error. Raises `FeatureDBError`.
    """
    if documents < 1:
        raise IngestError(f"documents must be at least 1, not {documents}")
    root = Path(path)
    if rebuild:
        _remove_own(root)
    with shown():
        if (root / "CURRENT").exists():
            log.info(f"reusing {root} (`featuredb demo --path {root} --rebuild` makes it anew)")
        else:
            build(root, documents)
    show(root)


def build(root: Path, documents: int) -> None:
    """Fetch the demo's model and texts, and ingest them."""
    log.info("fetching SmolLM2-135M-Instruct (93 MB) and the Wikipedia summaries (5 MB)")
    model = model_folder()
    corpus = wikipedia_corpus(documents)
    options = IngestOptions(
        corpus=str(corpus), model=str(model), saes=[str(SAE_FOLDER)], names=[NAME], progress=True
    )
    ingest(root, options)


def show(root: Path, feature: int = FEATURE) -> None:
    """Print one feature, its neighbours, what fires on a sentence, and the SQL for it."""
    out = Console(highlight=False)
    program = _program()
    with featuredb.open(root) as db:
        out.rule(f"{program} top {root} {feature}")
        db.top_contexts(feature, k=5, window=10).print(out)
        out.rule(f"{program} near {root} {feature}")
        db.near(feature, k=5).print(out)
        out.rule(f'{program} fires {root} "{SENTENCE}"')
        firing = db.fires_on(SENTENCE, k=8)
        firing.print(out)
        query = (
            "SELECT rank, feature_id, round(specificity, 2) AS specificity, token, "
            f"top_tokens[1:3] AS top_tokens FROM fires_on('{SENTENCE}', k := 8)"
        )
        out.rule("the same in SQL")
        out.print(f'{program} sql {root} "{query}"', soft_wrap=True)
        Rows(db.sql(query).to_arrow_table()).print(out)
    out.rule("go on with")
    for command, meaning in _next_steps(program, root, feature):
        out.print(f"[dim]{meaning}[/dim]\n  {escape(command)}", soft_wrap=True)


def _next_steps(program: str, root: Path, feature: int) -> list[tuple[str, str]]:
    return [
        (f"{program} feature {root} {feature}", "everything known about one feature"),
        (f"{program} search {root} guitar", "features by the words they fire on"),
        (f"{program} top {root} {feature} --where \"topic = 'People'\"", "top contexts, filtered"),
        (f'{program} fires {root} "a sentence of your own"', "what fires on new text"),
        (
            f'{program} sql {root} "SELECT feature_id, density, top_tokens[1] FROM features '
            'ORDER BY density DESC LIMIT 10"',
            "anything else, in SQL (docs/cookbook.md)",
        ),
        (
            f"{Path(program).with_name('python')}",
            f"then: import featuredb; db = featuredb.open('{root}'); db.top_contexts({feature})",
        ),
    ]


def _program() -> str:
    """How this command was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    if called.name != "featuredb":
        return "featuredb"
    if shutil.which("featuredb") == str(called):
        return "featuredb"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)


def _remove_own(root: Path) -> None:
    """Delete a database before it is made anew; never a folder that is not one."""
    if root.exists():
        own = any((root / name).exists() for name in ("CURRENT", "LOCK", "staging"))
        if not own:
            raise IngestError(f"{root} is not a featuredb database: it is left alone")
        remove_tree(root)
