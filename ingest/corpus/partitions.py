"""Columns that folders named ``key=value`` give to the files below them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from ingest.corpus.part import CorpusPart, PartRows, Scan
from ingest.corpus.separated import field_type, field_value

_NULL = "__HIVE_DEFAULT_PARTITION__"


class PartitionedPart:
    """A part with the values of its folders as columns, where the file has no such column."""

    def __init__(self, part: CorpusPart, values: Mapping[str, str | None]) -> None:
        self.part = part
        self.values = dict(values)

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def kind(self) -> str:
        return self.part.kind

    def scan(self, limit: int | None) -> Scan:
        scan = self.part.scan(limit)
        for name in self.values.keys() & set(scan.schema.names):
            del self.values[name]
        added = [pa.field(name, field_type(value or "")) for name, value in self.values.items()]
        return Scan(pa.schema([*scan.schema, *added]), scan.rows, scan.documents)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        columns_left = pa.schema([field for field in schema if field.name not in self.values])
        added = [field for field in schema if field.name in self.values]
        for offsets, batch in self.part.rows(columns_left):
            for field in added:
                value = field_value(self.values[field.name], field.type)
                column = pa.repeat(pa.scalar(value, field.type), len(offsets))
                batch = batch.append_column(field, column)
            yield PartRows(offsets, batch)

    def digest(self) -> bytes:
        named = json.dumps(list(self.values.items())).encode()
        return hashlib.sha256(self.part.digest() + named).digest()

    def size(self) -> int:
        return self.part.size()


def partition_of(path: str) -> dict[str, str | None]:
    """The keys and values of the folders in a file's path, percent signs decoded."""
    values: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals and key:
            values[unquote(key)] = None if value == _NULL else unquote(value)
    return values
