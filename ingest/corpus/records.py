"""Read JSON Lines, JSON, CSV, TSV and plain text row by row.

A format yields ``(row number, {column: value})``, in file order. The row number is 0-based:
the line number in JSON Lines, the element in JSON, the data row in CSV, 0 in plain text.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import CorpusError
from ingest.corpus import schema as typing_rules
from ingest.corpus.part import BATCH_BYTES, BATCH_ROWS, DocumentColumn, PartRows, Scan
from ingest.corpus.stream import characters, digest, lines

Record = tuple[int, dict[str, Any]]
_JSON_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
# Codes such as "007" or "1e5" stay text: as numbers they would not round-trip.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")


@dataclass(frozen=True)
class RecordFormat:
    """How a file format becomes records.

    `records(path, column)` yields them. `type_of` gives a value's type and `value_of(value,
    type)` the value in a column of that type.
    """

    kind: str
    records: Callable[[Path, str], Iterator[Record]]
    type_of: Callable[[Any], Any] = typing_rules.type_of
    value_of: Callable[[Any, Any], Any] = lambda value, _: value


@dataclass(frozen=True)
class RecordPart:
    """A file of records with the documents in `column`."""

    name: str
    path: Path
    format: RecordFormat
    column: DocumentColumn

    @property
    def kind(self) -> str:
        return self.format.kind

    def scan(self, limit: int | None) -> Scan:
        types: dict[str, Any] = {}
        rows = documents = 0
        for row, record in self.format.records(self.path, self.column.name):
            if documents == limit:
                break
            rows += 1
            documents += record.get(self.column.name) is not None
            for name, value in record.items():
                known = types.get(name, typing_rules.NULL)
                if name == self.column.name and self.column.role != "tokens":
                    data_type = self._document_type(row, value)
                else:
                    data_type = self.format.type_of(value)
                types[name] = typing_rules.widen(known, data_type)
        return Scan(pa.schema(types.items()), rows, documents)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        offsets: list[int] = []
        records: list[dict[str, Any]] = []
        size = 0
        for row, record in self.format.records(self.path, self.column.name):
            offsets.append(row)
            records.append(record)
            size += sum(len(value) for value in record.values() if isinstance(value, str | list))
            if len(records) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield self._batch(offsets, records, schema)
                offsets, records, size = [], [], 0
        if records:
            yield self._batch(offsets, records, schema)

    def digest(self) -> bytes:
        return digest(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    def _batch(self, offsets: list[int], records: list[dict[str, Any]], schema: Any) -> PartRows:
        columns = []
        for column in schema:
            values = [record.get(column.name) for record in records]
            values = [self.format.value_of(value, column.type) for value in values]
            try:
                columns.append(typing_rules.array_of(values, column.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, TypeError) as error:
                raise CorpusError(
                    f"{self.path}, rows {offsets[0]} to {offsets[-1]}: column {column.name!r} "
                    f"does not fit {column.type}: {error}"
                ) from error
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        return PartRows(pa.array(offsets, pa.int64()), batch)

    def _document_type(self, row: int, value: Any) -> Any:
        """Return the type of a text or a chat. Every row has to have it."""
        if value is None:
            return typing_rules.NULL
        if self.column.role == "text":
            if isinstance(value, str):
                return typing_rules.STRING
            raise CorpusError(
                f"{self.path}, row {row}: column {self.column.name!r} is {_JSON_NAMES[type(value)]}"
                f", not text; name the column that holds the text"
            )
        if isinstance(value, list) and all(_is_message(message) for message in value):
            return typing_rules.MESSAGES
        raise CorpusError(
            f"{self.path}, row {row}: column {self.column.name!r} has to be a list of "
            f'{{"role": string, "content": string}}'
        )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def _json_lines(path: Path, _: str) -> Iterator[Record]:
    for line in lines(path):
        if not line.text.strip():
            continue
        where = f"{path}, line {line.number + 1}"
        try:
            value = json.loads(line.text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(
                f"{where} is not valid JSON: {error}; JSON Lines has one object a line"
            ) from error
        yield line.number, _checked(value, where, line.text)


def _json_values(path: Path, _: str) -> Iterator[Record]:
    """Yield the elements of an array of objects, or concatenated objects."""
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
        self._decoder = json.JSONDecoder()

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
                value, end = self._decoder.raw_decode(self.buffer, self.at)
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
    if not isinstance(value, dict):
        raise CorpusError(f"{where} is a {type(value).__name__}, not an object with columns")
    if _HALF_PAIR.search(source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
                f"character; replace it by \\ufffd"
            ) from error
    return value


def _separated(path: Path, _: str, *, delimiter: str) -> Iterator[Record]:
    # The limit of 128 KiB per field is process-wide, so it is only raised.
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader((line.text for line in lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    count = 0
    try:
        for fields in rows:
            if not fields:
                continue
            if header is None:
                header = fields
                doubled = {name for name in header if header.count(name) > 1}
                if doubled:
                    raise CorpusError(f"{path} has two columns named {min(doubled)!r}; rename one")
                continue
            if len(fields) != len(header):
                raise CorpusError(
                    f"{path}, line {rows.line_num} has {len(fields)} fields where the header has "
                    f"{len(header)}; quote fields that contain {delimiter!r} or line breaks"
                )
            yield count, dict(zip(header, fields, strict=True))
            count += 1
    except csv.Error as error:
        raise CorpusError(f"{path}, line {rows.line_num} is not valid CSV: {error}") from error


def _separated_type(value: str) -> Any:
    if not value:
        return typing_rules.NULL
    if _INTEGER.fullmatch(value):
        return typing_rules.type_of(0)
    if _DECIMAL.fullmatch(value):
        return typing_rules.type_of(0.0)
    return typing_rules.type_of(True) if _truth(value) is not None else typing_rules.STRING


def _separated_value(value: str | None, data_type: Any) -> Any:
    if value is None or pa.types.is_string(data_type):
        return value
    if not value:
        return None
    if pa.types.is_boolean(data_type):
        return _truth(value)
    return float(value) if pa.types.is_floating(data_type) else int(value)


def _truth(value: str) -> bool | None:
    return {"true": True, "false": False}.get(value.lower())


def _plain_text(path: Path, column: str) -> Iterator[Record]:
    yield 0, {column: "".join(characters(path))}


_FROM_STRINGS: dict[str, Any] = {
    "type_of": _separated_type,
    "value_of": _separated_value,
}
JSON_LINES = RecordFormat("JSON Lines", _json_lines)
JSON = RecordFormat("JSON", _json_values)
CSV = RecordFormat("CSV", partial(_separated, delimiter=","), **_FROM_STRINGS)
TSV = RecordFormat("TSV", partial(_separated, delimiter="\t"), **_FROM_STRINGS)
TEXT = RecordFormat("plain text", _plain_text)
