"""Resolve paths, folders and globs to the parts of a corpus."""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from featuredb.errors import CorpusError
from ingest.corpus.part import CorpusPart, DocumentColumn
from ingest.corpus.records import CSV, JSON, JSON_LINES, TEXT, TSV, RecordFormat, RecordPart
from ingest.corpus.stream import head_of
from ingest.corpus.tables import ArrowPart, ParquetPart

_READERS = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": TSV,
    ".txt": TEXT,
    ".md": TEXT,
}
_PARQUET = {".parquet", ".pq"}
_ARROW = {".arrow", ".feather", ".ipc", ".arrows"}
_COMPRESSED = {".gz", ".zst"}
_WILD = frozenset("*?[")


def parts_of(source: str, column: DocumentColumn) -> list[CorpusPart]:
    """List the files that a path, a folder or a glob names, sorted by path.

    Raises:
        CorpusError: there are none.
    """
    path = Path(source)
    try:
        if path.is_dir():
            files = _in_folder(path)
            named = [(file.relative_to(path).as_posix(), file) for file in files]
        elif path.exists():
            named = [(source, path)]
        elif _WILD.intersection(source):
            named = [(file, Path(file)) for file in _matching(source)]
        else:
            raise CorpusError(f"there is no file or folder {source}; {_near(path)}")
    except OSError as error:
        raise CorpusError(f"cannot look for {source}: {error.strerror or error}") from error
    return [file_part(file, name, column) for name, file in named]


def file_part(path: Path, name: str, column: DocumentColumn) -> CorpusPart:
    """Create the part for one file, by its extension or else by its first bytes.

    Raises:
        CorpusError: it is a binary file of no known kind, or cannot be read.
    """
    extension = extension_of(path)
    if extension in _PARQUET:
        return ParquetPart(name, path)
    if extension in _ARROW:
        return ArrowPart(name, path)
    reader = _READERS.get(extension)
    if reader is None:
        head = head_of(path)
        if head.startswith(b"PAR1"):
            return ParquetPart(name, path)
        if head.startswith(b"ARROW1"):
            return ArrowPart(name, path)
        reader = _reader_for(head)
    return RecordPart(name, path, reader, column)


def looks_like_path(text: str) -> bool:
    """Whether a string in a list is a path: it exists, or has a known extension."""
    if not text or len(text) > 1024 or "\n" in text or "\0" in text:
        return False
    known = extension_of(Path(text)) in {*_READERS, *_PARQUET, *_ARROW}
    return known or os.path.exists(text)


def extension_of(path: Path) -> str:
    """Return the extension in lower case, ignoring ``.gz`` and ``.zst``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _in_folder(folder: Path) -> list[Path]:
    """List files of known extensions at any depth, skipping hidden ones and ``_SUCCESS``."""
    files, others = [], Counter[str]()
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if any(piece.startswith((".", "_")) for piece in inside.parts) or not path.is_file():
            continue
        extension = extension_of(path)
        if extension in _READERS or extension in _PARQUET or extension in _ARROW:
            files.append(path)
        else:
            others[extension or path.name] += 1
    if not files:
        seen = ", ".join(f"{count} {name}" for name, count in others.most_common(3))
        raise CorpusError(
            f"the folder {folder} has no corpus files"
            + (f" (only {seen})" if seen else "")
            + "; it should hold Parquet, Arrow, JSON, CSV or text files"
        )
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _matching(pattern: str) -> Iterable[str]:
    names = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
    if not names:
        raise CorpusError(
            f"no file matches {pattern}; quote the pattern, and use ** to go into folders"
        )
    return sorted(names, key=lambda name: Path(name).as_posix())


def _near(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {parent} either"
    names = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(str(parent / name) for name in near) + "?"
    return f"{parent} holds " + (", ".join(sorted(names)[:5]) if names else "nothing")


def _reader_for(head: bytes) -> RecordFormat:
    start = head.lstrip()
    if start.startswith(b"[") and start[1:].lstrip().startswith(b"{"):
        return JSON
    # An object that ends on its first line is JSON Lines; one that goes on is JSON.
    first = start.split(b"\n", 1)[0].rstrip()
    if first.startswith(b"{") and b'"' in first and first.endswith(b"}"):
        return JSON_LINES
    return JSON if start.startswith(b"{") and start[1:].lstrip().startswith(b'"') else TEXT
