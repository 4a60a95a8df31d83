"""Read JSON Lines, JSON, CSV, TSV and plain text row by row.

A format yields ``(row number, {column: value})``, in file order. The row number is 0-based:
the line number in JSON Lines, the element in JSON, the data row in CSV, 0 in plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import CorpusError
from ingest.corpus import schema as typing_rules
from ingest.corpus.arrays import STRING
from ingest.corpus.json_records import json_lines, json_values
from ingest.corpus.json_values import Entries, Numeral
from ingest.corpus.part import BATCH_BYTES, BATCH_ROWS, DocumentColumn, PartRows, Record, Scan
from ingest.corpus.separated import comma_separated, field_type, field_value, tab_separated
from ingest.corpus.stream import characters, digest

_JSON_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    Numeral: "a number",
    Entries: "an object",
}


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
                    try:
                        data_type = self.format.type_of(value)
                    except RecursionError as error:
                        raise self._too_deep(name, row, row) from error
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
            except RecursionError as error:
                raise self._too_deep(column.name, offsets[0], offsets[-1]) from error
            except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, TypeError) as error:
                raise CorpusError(
                    f"{self.path}, rows {offsets[0]} to {offsets[-1]}: column {column.name!r} "
                    f"does not fit {column.type}: {error}"
                ) from error
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        return PartRows(pa.array(offsets, pa.int64()), batch)

    def _too_deep(self, name: str, first: int, last: int) -> CorpusError:
        return CorpusError(
            f"{self.path}, rows {first} to {last}: column {name!r} is nested too deep; flatten it"
        )

    def _document_type(self, row: int, value: Any) -> Any:
        """Return the type of a text or a chat. Every row has to have it."""
        if value is None:
            return typing_rules.NULL
        if self.column.role == "text":
            if isinstance(value, str):
                return STRING
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


def _plain_text(path: Path, column: str) -> Iterator[Record]:
    yield 0, {column: "".join(characters(path))}


_FROM_STRINGS: dict[str, Any] = {"type_of": field_type, "value_of": field_value}
JSON_LINES = RecordFormat("JSON Lines", json_lines)
JSON = RecordFormat("JSON", json_values)
CSV = RecordFormat("CSV", comma_separated, **_FROM_STRINGS)
TSV = RecordFormat("TSV", tab_separated, **_FROM_STRINGS)
TEXT = RecordFormat("plain text", _plain_text)
