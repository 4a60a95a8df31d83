"""What a corpus is called: as its user says, or after its source."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from featuredb.errors import IngestError
from ingest.corpus.hub import PREFIX

_DATA = (
    ".arrow",
    ".csv",
    ".feather",
    ".ipc",
    ".json",
    ".jsonl",
    ".md",
    ".ndjson",
    ".parquet",
    ".tsv",
)
_ENDINGS = frozenset([*_DATA, ".txt", ".bz2", ".gz", ".lz4", ".xz", ".zst"])


def check_corpus_name(name: str) -> None:
    """Raise `IngestError` for a name that could be taken for an id, or cannot be shown."""
    if not name.strip() or not name.isprintable() or name.isdigit():
        raise IngestError(
            f"a corpus cannot be called {name!r}: give a name that is more than digits or spaces, "
            "such as mail"
        )


def corpus_name(source: str, given: str | None, taken: Collection[str]) -> str:
    """The name of a new corpus: `given`, else after its source, with a number where that is taken.

    Raises `IngestError` where `given` is taken.
    """
    if given is not None:
        if given in taken:
            raise IngestError(
                f"the database has a corpus named {given!r}: give another --corpus-name, or drop "
                "that one first"
            )
        return given
    first = _after(source)
    name, number = first, 1
    while name in taken:
        number += 1
        name = f"{first}-{number}"
    return name


def _after(source: str) -> str:
    """`mail` for ``data/mail.jsonl.gz``, ``hf:someone/mail@train``, ``mail/*.txt``, ``mail/``."""
    if source == "-":
        return "stdin"
    if source.startswith(PREFIX):
        source = source.removeprefix(PREFIX).partition("@")[0].partition(":")[0]
    path = PurePosixPath(source.partition(", ")[0].replace("\\", "/"))
    while any(c in path.name for c in "*?["):
        path = path.parent
    while path.suffix.lower() in _ENDINGS:
        path = path.with_suffix("")
    name = "".join(c if c.isprintable() else "_" for c in path.name).strip(". ")
    return f"corpus-{name}".rstrip("-") if not name or name.isdigit() else name
