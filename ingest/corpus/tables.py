"""Typed parts: Parquet files, Arrow IPC files and streams, tables in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from featuredb.errors import CorpusError, first_line
from ingest.corpus import schema as typing_rules
from ingest.corpus.part import BATCH_BYTES, BATCH_ROWS, PartRows, Scan
from ingest.corpus.stream import digest, reading


@dataclass(frozen=True)
class ParquetPart:
    """A Parquet file. Schema and length come from the footer."""

    name: str
    path: Path
    kind: str = "Parquet"

    def scan(self, limit: int | None) -> Scan:
        with self._open() as file:
            return Scan(_storable_schema(file.schema_arrow, str(self.path)), file.metadata.num_rows)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        with self._open() as file:
            metadata = file.metadata
            size = sum(metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            # Long documents come in smaller batches. The footer gives only the mean.
            per_row = max(1, size // max(1, metadata.num_rows))
            batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // per_row))
            names = [name for name in schema.names if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_rows, columns=names, use_threads=False)
            yield from _typed(batches, schema, str(self.path))

    def digest(self) -> bytes:
        return digest(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with _arrow_errors(self.path, "Parquet"), self.path.open("rb") as source:
            yield pyarrow.parquet.ParquetFile(source)


@dataclass(frozen=True)
class ArrowPart:
    """An Arrow IPC file (Feather) or IPC stream, optionally compressed as a whole."""

    name: str
    path: Path
    kind: str = "Arrow"

    def scan(self, limit: int | None) -> Scan:
        with self._open() as (schema, batches):
            rows = sum(batch.num_rows for batch in batches)
            return Scan(_storable_schema(schema, str(self.path)), rows)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        with self._open() as (_, batches):
            yield from _typed(batches, schema, str(self.path))

    def digest(self) -> bytes:
        return digest(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Iterator[Any]]]:
        with _arrow_errors(self.path, "Arrow"), reading(self.path) as source:
            mark = source.peek(6)[:6] if hasattr(source, "peek") else b""
            if mark == b"ARROW1" and source.seekable():
                file = pa.ipc.open_file(source)
                numbers = range(file.num_record_batches)
                yield file.schema, (file.get_batch(number) for number in numbers)
            elif mark == b"ARROW1":
                # A compressed file cannot be searched for its footer, but after the mark and two
                # bytes of padding it is a stream.
                source.read(8)
                stream = pa.ipc.open_stream(source)
                yield stream.schema, iter(stream)
            else:
                stream = pa.ipc.open_stream(source)
                yield stream.schema, iter(stream)


@dataclass(frozen=True)
class TablePart:
    """An Arrow table in memory."""

    name: str
    table: Any
    kind: str = "Arrow table"

    def scan(self, limit: int | None) -> Scan:
        return Scan(_storable_schema(self.table.schema, self.name), self.table.num_rows)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        yield from _typed(iter(self.table.to_batches(BATCH_ROWS)), schema, self.name)

    def digest(self) -> bytes:
        # Values, and not buffers, so that chunks and slices make no difference.
        content = hashlib.sha256(json.dumps(self.table.schema.names).encode())
        for batch in self.table.to_batches(BATCH_ROWS):
            for row in batch.to_pylist():
                content.update(json.dumps(list(row.values()), default=repr).encode() + b"\n")
        return content.digest()

    def size(self) -> int:
        return int(self.table.nbytes)


def typed_rows(batch: Any, first: int, schema: Any, where: str) -> PartRows:
    """Cast a record batch's columns to `schema`. Rows are numbered from `first`.

    Raises:
        CorpusError: a value does not fit.
    """
    fields = [field for field in schema if field.name in batch.schema.names]
    columns = []
    for field in fields:
        try:
            columns.append(typing_rules.cast_array(batch.column(field.name), field.type))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise CorpusError(
                f"{where}, rows {first} to {first + batch.num_rows - 1}: column {field.name!r} "
                f"does not fit {field.type}: {error}"
            ) from error
    offsets = pa.array(range(first, first + batch.num_rows), pa.int64())
    if not fields:
        return PartRows(offsets, pa.RecordBatch.from_arrays([], names=[]))
    return PartRows(offsets, pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))


def _typed(batches: Iterator[Any], schema: Any, where: str) -> Iterator[PartRows]:
    first = 0
    for batch in batches:
        if batch.num_rows:
            yield typed_rows(batch, first, schema, where)
        first += batch.num_rows


def _storable_schema(schema: Any, where: str) -> Any:
    doubled = {name for name in schema.names if schema.names.count(name) > 1}
    if doubled:
        raise CorpusError(f"{where} has two columns named {min(doubled)!r}; rename one")
    return pa.schema([(field.name, typing_rules.storable(field.type)) for field in schema])


@contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into `CorpusError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise CorpusError(
            f"{path} cannot be read as {kind}: {reason}; write it again or leave it out"
        ) from error
