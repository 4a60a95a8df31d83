"""Creating the demo database: a real model, a real SAE and a real corpus."""

from __future__ import annotations

from pathlib import Path

from featuredb.errors import IngestError
from featuredb.render.progress import log, shown
from featuredb.store.files.atomic import remove_tree
from ingest.demo.fetch import model_folder, wikipedia_corpus
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions

SAE_FOLDER = Path(__file__).with_name("sae")
NAME = "layer13"


def make_demo(root: Path, *, documents: int, rebuild: bool) -> None:
    """Create the demo database at `root` unless it exists. See `featuredb.demo`."""
    if documents < 1:
        raise IngestError(f"documents must be at least 1, not {documents}")
    if rebuild:
        _remove_database(root)
    with shown():
        if (root / "CURRENT").exists():
            log.info(f"reusing {root} (`featuredb demo --path {root} --rebuild` makes it anew)")
            return
        log.info("fetching SmolLM2-135M-Instruct (93 MB) and the Wikipedia summaries (5 MB)")
        options = IngestOptions(
            model=str(model_folder()),
            corpus=str(wikipedia_corpus(documents)),
            saes=[str(SAE_FOLDER)],
            names=[NAME],
            progress=True,
        )
        ingest(root, options)


def _remove_database(root: Path) -> None:
    """Delete a database, never a folder that is not one."""
    if root.exists():
        if not any((root / name).exists() for name in ("CURRENT", "LOCK", "staging")):
            raise IngestError(f"{root} is not a featuredb database: it is left alone")
        remove_tree(root)
