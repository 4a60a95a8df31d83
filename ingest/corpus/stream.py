"""Read corpus files: streaming decompression and strict decoding.

Every error in a file's content becomes a `CorpusError` that names the file and the place.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featuredb.errors import CorpusError
from featuredb.store.files.atomic import sha256_of
from ingest.corpus.compression import CHUNK_BYTES, ERRORS, opened

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Line:
    """One line of a text file with the line feed that ends it.

    `number` is 0-based; `text` has no byte-order mark.
    """

    number: int
    text: str


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for reading its decompressed bytes.

    Raises:
        CorpusError: it cannot be opened, or a read inside the block fails.
    """
    try:
        with opened(path) as file:
            yield file
    except ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CorpusError(
            f"cannot read {path}: {reason}; check the file or leave it out"
        ) from error


def head_of(path: Path, size: int = CHUNK_BYTES) -> bytes:
    """Return the first `size` decompressed bytes of a file, fewer if it is shorter."""
    with reading(path) as file:
        return file.read(size)


def lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a UTF-8 file, split at line feeds only.

    Raises:
        CorpusError: the file is unreadable, not UTF-8, or binary.
    """
    position = 0
    with reading(path) as file:
        for number, raw in enumerate(file):
            line = raw
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, raw, position + error.start, number) from error
            if "\0" in text:
                raise _binary(path, position + raw.index(b"\0"))
            position += len(raw)
            yield Line(number, text)


def characters(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces of about a megabyte.

    Raises:
        CorpusError: the file is unreadable, not UTF-8, or binary.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = newlines = 0
    with reading(path) as file:
        while True:
            raw = file.read(CHUNK_BYTES)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                # The decoder counts from the bytes it held back from the last piece.
                line = newlines + raw[: max(error.start - held, 0)].count(b"\n")
                raise _not_utf8(path, raw, position - held + error.start, line) from error
            if b"\0" in raw:
                raise _binary(path, position + raw.index(b"\0"))
            if position == 0:
                text = text.removeprefix("\ufeff")
            position += len(raw)
            newlines += raw.count(b"\n")
            if text:
                yield text
            if not raw:
                return


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file as stored on disk (32 bytes).

    Raises:
        CorpusError: the file cannot be read.
    """
    try:
        return bytes.fromhex(sha256_of(path))
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from error


def _not_utf8(path: Path, raw: bytes, offset: int, line: int) -> CorpusError:
    if line == 0 and raw.startswith(_UTF16_MARKS):
        return CorpusError(f"{path} is UTF-16, not UTF-8; convert it to UTF-8 first")
    return CorpusError(
        f"{path} is not valid UTF-8 at byte {offset} (line {line + 1}); "
        f"convert it to UTF-8 or repair that line"
    )


def _binary(path: Path, offset: int) -> CorpusError:
    return CorpusError(
        f"{path} is a binary file (a zero byte at byte {offset}), not text; "
        f"give Parquet, Arrow, JSON, CSV or plain text"
    )
