"""Resolve paths, folders and globs to the parts of a corpus."""

from __future__ import annotations

import codecs
import difflib
import glob
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from featuredb.errors import CorpusError
from ingest.corpus import folders
from ingest.corpus.compression import ENDINGS
from ingest.corpus.part import CorpusPart, DocumentColumn
from ingest.corpus.partitions import PartitionedPart, partition_of
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
_WILD = frozenset("*?[")
_MARK_BYTES = 512
_POINTER = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive"}


def refuse_missing(source: str) -> None:
    """Raise the `CorpusError` of a path, folder or glob where there is nothing. Reads no file."""
    local = _local(source)
    if not local.strip():
        raise CorpusError("the corpus has no name; give a path")
    path = Path(local)
    try:
        if path.exists():
            return
        if not _WILD.intersection(local):
            raise CorpusError(f"there is no file or folder {source}; {near(path)}")
        _matching(local)
    except OSError as error:
        raise CorpusError(f"cannot look for {source}: {error.strerror or error}") from error


def parts_of(source: str, column: DocumentColumn) -> list[CorpusPart]:
    """List the files that a path, a folder or a glob names, sorted by path.

    Folders named ``key=value`` below the folder, or below what a glob names without wild cards,
    give every document of theirs a column.

    Raises:
        CorpusError: there are none.
    """
    refuse_missing(source)
    local = _local(source)
    path = Path(local)
    try:
        if path.is_dir():
            files = folders.files_of(path, _is_corpus_file, _is_row_file)
            named = [(file.relative_to(path).as_posix(), file) for file in files]
            inside = [name for name, _ in named]
        elif path.exists():
            named, inside = [(source, path)], [""]
        else:
            named = [(name, Path(name)) for name in _matching(local)]
            inside = [str(file.relative_to(_fixed(path))) for _, file in named]
    except OSError as error:
        raise CorpusError(f"cannot look for {source}: {error.strerror or error}") from error
    parts = [file_part(file, name, column) for name, file in named]
    partitions = [partition_of(name) for name in inside]
    return [
        PartitionedPart(part, values) if values else part
        for part, values in zip(parts, partitions, strict=True)
    ]


def _local(source: str) -> str:
    """The path that a corpus is named by: as it is, from ``~``, or as a ``file://`` URL.

    Raises:
        CorpusError: it is a URL of another kind.
    """
    scheme, separator, _ = source.partition("://")
    if separator and scheme.isalnum():
        url = urlsplit(source)
        if scheme.lower() != "file" or url.netloc not in ("", "localhost"):
            raise CorpusError(
                f"a corpus is not read from {scheme}://; download it first, or name a data set of "
                f"the Hugging Face hub with hf:owner/dataset"
            )
        return unquote(url.path)
    return os.path.expanduser(source)


def file_part(path: Path, name: str, column: DocumentColumn) -> CorpusPart:
    """Create the part for one file, by its extension or else by its first bytes.

    Raises:
        CorpusError: it is a binary file of no known kind, a pointer of Git LFS, or cannot be read.
    """
    head = head_of(path, _MARK_BYTES)
    if head.startswith(_POINTER):
        raise CorpusError(f"{path} is a pointer of Git LFS, not the file; run `git lfs pull`")
    kind = next((kind for mark, kind in _ARCHIVES.items() if head.startswith(mark)), None)
    if kind is not None or head[257:262] == b"ustar":
        raise CorpusError(f"{path} is {kind or 'a tar archive'}; unpack it and name the folder")
    extension = extension_of(path)
    if extension in _PARQUET:
        return ParquetPart(name, path)
    if extension in _ARROW:
        return ArrowPart(name, path)
    reader = _READERS.get(extension)
    if reader is None:
        if head.startswith(b"PAR1"):
            return ParquetPart(name, path)
        if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            return ArrowPart(name, path)
        reader = _reader_for(head_of(path), column.name)
    return RecordPart(name, path, reader, column)


def looks_like_path(text: str) -> bool:
    """Whether a string in a list is a path: it exists, or has a known extension."""
    if not text or len(text) > 1024 or "\n" in text or "\0" in text:
        return False
    return _is_corpus_file(Path(text)) or os.path.exists(os.path.expanduser(text))


def extension_of(path: Path) -> str:
    """Return the extension in lower case, ignoring that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in ENDINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_corpus_file(path: Path) -> bool:
    extension = extension_of(path)
    return extension in _READERS or extension in _PARQUET or extension in _ARROW


def _is_row_file(path: Path) -> bool:
    """Whether a file holds rows, and not one text."""
    return _is_corpus_file(path) and _READERS.get(extension_of(path)) is not TEXT


def _matching(pattern: str) -> list[str]:
    names = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
    if not names:
        raise CorpusError(
            f"no file matches {pattern}; quote the pattern, and use ** to go into folders"
        )
    return sorted(names, key=lambda name: Path(name).as_posix())


def _fixed(pattern: Path) -> Path:
    """The folders of a pattern before its first wild card."""
    wild = next(i for i, part in enumerate(pattern.parts) if _WILD.intersection(part))
    return Path(*pattern.parts[:wild])


def near(path: Path) -> str:
    """What there is in place of a path that is not there, for messages."""
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {parent} either"
    names = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(str(parent / name) for name in near) + "?"
    return f"{parent} holds " + (", ".join(sorted(names)[:5]) if names else "nothing")


def _reader_for(head: bytes, column: str) -> RecordFormat:
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"[") and start[1:].lstrip().startswith(b"{"):
        return JSON
    # An object that ends on its first line is JSON Lines; one that goes on is JSON.
    first = start.split(b"\n", 1)[0].rstrip()
    if first.startswith(b"{") and b'"' in first and first.endswith(b"}"):
        return JSON_LINES
    if start.startswith(b"{") and start[1:].lstrip().startswith(b'"'):
        return JSON
    # A header names the column of the documents, and another one.
    for separator, reader in ((b"\t", TSV), (b",", CSV)):
        names = [name.strip(b'"') for name in first.split(separator)]
        if len(names) > 1 and column.encode() in names:
            return reader
    return TEXT
