"""Records of JSON Lines files, and of JSON files: an array of objects, or objects one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featuredb.errors import CorpusError
from ingest.corpus.json_values import Entries, as_text, decode
from ingest.corpus.part import Record
from ingest.corpus.stream import characters, lines

_WHITESPACE = re.compile(r"[ \t\r\n]*")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def json_lines(path: Path, _: str) -> Iterator[Record]:
    """Yield the objects of a file that has one a line, by line number."""
    for line in lines(path):
        text = line.text.strip(" \t\r\n")
        if not text.strip():
            continue
        where = f"{path}, line {line.number + 1}"
        try:
            value, end = decode(text)
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(
                f"{where} is not valid JSON: {error}; JSON Lines has one object a line"
            ) from error
        yield line.number, _checked(value, where, text)


def json_values(path: Path, _: str) -> Iterator[Record]:
    """Yield the elements of an array of objects, or concatenated objects, by their number."""
    reader = _JsonReader(path)
    is_array = reader.peek() == "["
    if is_array:
        reader.at += 1
    count = 0
    while mark := reader.peek():
        if is_array and mark == "]":
            reader.at += 1
            if reader.peek():
                raise reader.error("there is something after the array")
            return
        if is_array and count:
            if mark != ",":
                raise reader.error("',' or ']' expected")
            reader.at += 1
            reader.peek()
        value, source = reader.value()
        yield count, _checked(value, f"{path}, element {count}", source)
        count += 1
    if is_array:
        raise reader.error("the array has no end")


class _JsonReader:
    """Decodes one JSON value at a time from a file, in memory of about one value.

    `buffer[at:]` is what was read and not yet decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.buffer = ""
        self._dropped = 0
        self._pieces = characters(path)

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end of the file."""
        while True:
            match = _WHITESPACE.match(self.buffer, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._fill():
                return ""

    def value(self) -> tuple[Any, str]:
        """Decode the value that starts here. Returns it with its source text."""
        while True:
            try:
                value, end = decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or (
                    error.pos > len(self.buffer) - 16
                )
                if cut_off and self._fill():
                    continue
                raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.error("nested too deep") from error
            source = self.buffer[self.at : end]
            self.at = end
            return value, source

    def error(self, reason: str, position: int | None = None) -> CorpusError:
        where = self._dropped + (self.at if position is None else position)
        return CorpusError(
            f"{self.path} is not valid JSON at character {where}: {reason}; "
            f"it should be an array of objects"
        )

    def _fill(self) -> bool:
        """Read until the buffer has doubled, so that a long value is decoded few times."""
        rest = self.buffer[self.at :]
        self._dropped += self.at
        pieces, size = [rest], len(rest)
        for piece in self._pieces:
            pieces.append(piece)
            size += len(piece)
            if size >= 2 * len(rest):
                break
        self.buffer, self.at = "".join(pieces), 0
        return len(pieces) > 1


def _checked(value: Any, where: str, source: str) -> dict[str, Any]:
    if isinstance(value, Entries):
        names = [name for name, _ in value.pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise CorpusError(f"{where} has the key {doubled!r} twice; rename one or leave one out")
    if not isinstance(value, dict):
        raise CorpusError(f"{where} is a {type(value).__name__}, not an object with columns")
    if _HALF_PAIR.search(source):
        try:
            str(as_text(value)).encode()
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
                f"character; replace it by \\ufffd"
            ) from error
    return value
