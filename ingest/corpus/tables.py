"""Typed parts: Parquet files, Arrow IPC files and streams, tables in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from featuredb.errors import CorpusError, first_line
from ingest.corpus import arrays
from ingest.corpus.json_values import EXACT_DOUBLE
from ingest.corpus.part import BATCH_BYTES, BATCH_ROWS, CHATS, PartRows, Scan
from ingest.corpus.stream import digest, reading

_INTEGERS = ("INT", "NONE")
_PLAIN = ("BOOLEAN", "FLOAT", "DOUBLE", "INT32", "INT64")
_NANOSECONDS = 9_223_372_036_854_775_807
"""What 64 bits count to on both sides of 1970: from 1677 to 2262."""
_VALUE_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclass(frozen=True)
class ParquetPart:
    """A Parquet file. Schema and length come from the footer, and types that depend on values from
    reading those columns."""

    name: str
    path: Path
    kind: str = "Parquet"

    def scan(self, limit: int | None) -> Scan:
        with self._open() as file:
            schema = storable_schema(file.schema_arrow, str(self.path))
            asked = [
                field.name
                for field in file.schema_arrow
                if arrays.depends_on_values(field.type) and not _has_small_integers(file, field)
            ]
            if asked:
                batches = file.iter_batches(BATCH_ROWS, columns=asked, use_threads=False)
                schema = fitting_schema(schema, batches, str(self.path))
            return Scan(schema, file.metadata.num_rows)

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
    def _open(self, unit: str | None = None) -> Iterator[Any]:
        with _arrow_errors(self.path, "Parquet"), self.path.open("rb") as source:
            unit = unit or self._int96_unit
            yield pyarrow.parquet.ParquetFile(source, coerce_int96_timestamp_unit=unit)

    @cached_property
    def _int96_unit(self) -> str:
        """The unit in which timestamps of 96 bits, as Spark and Impala write them, are read.

        Nanoseconds if they all lie in the years that those reach, else microseconds. pyarrow gives
        wrong dates for the others.

        Raises:
            CorpusError: neither unit holds them all.
        """
        with self._open("us") as micro, self._open("ns") as nano:
            schema = micro.metadata.schema
            leaves = (schema.column(number) for number in range(len(schema)))
            paths = [leaf.path for leaf in leaves if leaf.physical_type == "INT96"]
            if not paths:
                return "ns"
            far = exact = False
            readers = (f.iter_batches(columns=paths, use_threads=False) for f in (micro, nano))
            for batch, finer in zip(*readers, strict=True):
                for column, fine in zip(batch.columns, finer.columns, strict=True):
                    for some in zip(arrays.leaves(column), arrays.leaves(fine), strict=True):
                        ticks, fraction = (leaf.cast(pa.int64()).drop_null() for leaf in some)
                        reached = np.abs(ticks.to_numpy()) <= _NANOSECONDS // 1_000
                        far |= not reached.all()
                        exact |= bool((fraction.to_numpy()[reached] % 1_000).any())
            if far and exact:
                raise CorpusError(
                    f"{self.path} has timestamps of 96 bits outside the years 1677 to 2262 beside "
                    f"others with nanoseconds; write it again with timestamps in microseconds"
                )
            return "us" if far else "ns"


@dataclass(frozen=True)
class ArrowPart:
    """An Arrow IPC file (Feather) or IPC stream, optionally compressed as a whole."""

    name: str
    path: Path
    kind: str = "Arrow"

    def scan(self, limit: int | None) -> Scan:
        with self._open() as (schema, batches):
            counted = _Counted(batches)
            storable = storable_schema(schema, str(self.path))
            storable = fitting_schema(storable, counted, str(self.path))
            return Scan(storable, counted.rows)

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
        schema = storable_schema(self.table.schema, self.name)
        batches = self.table.to_batches(BATCH_ROWS)
        return Scan(fitting_schema(schema, batches, self.name), self.table.num_rows)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        yield from _typed(iter(self.table.to_batches(BATCH_ROWS)), schema, self.name)

    def digest(self) -> bytes:
        # Values, and not buffers, so that chunks and slices make no difference. As stored, so that
        # Python can hold them.
        content = hashlib.sha256(json.dumps(self.table.schema.names).encode())
        schema = pa.schema([(f.name, arrays.settled(f.type)) for f in self.scan(None).schema])
        for _, batch in self.rows(schema):
            for row in batch.to_pylist():
                content.update(json.dumps(list(row.values()), default=repr).encode() + b"\n")
        return content.digest()

    def size(self) -> int:
        return int(self.table.nbytes)


def storable_schema(schema: Any, where: str, of_bytes: Any = arrays.STRING) -> Any:
    """The columns of a part in the types they are stored in, if their values fit.

    `of_bytes` is the type of columns of bytes.

    Raises:
        CorpusError: two columns have one name, or a struct has fields that SQL cannot tell apart.
    """
    doubled = {name for name in schema.names if schema.names.count(name) > 1}
    if doubled:
        raise CorpusError(f"{where} has two columns named {min(doubled)!r}; rename one")
    fields = []
    for field in schema:
        try:
            fields.append((field.name, arrays.storable(field.type, of_bytes)))
        except ValueError as error:
            raise CorpusError(f"{where}: column {field.name!r}: {error}") from error
    return pa.schema(fields)


def fitting_schema(schema: Any, batches: Iterable[Any], where: str) -> Any:
    """Correct `storable_schema` by the values of `batches`, which may have some of the columns.

    Raises:
        CorpusError: a value cannot be read.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    for batch in batches:
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if not arrays.depends_on_values(field.type):
                continue
            try:
                types[field.name] = arrays.fitting(column, types[field.name])
            except _VALUE_ERRORS as error:
                raise _does_not_fit(where, field.name, types[field.name], error) from error
    return pa.schema(types.items())


def typed_rows(batch: Any, first: int, schema: Any, where: str) -> PartRows:
    """Convert a record batch's columns to `schema`. Rows are numbered from `first`.

    Raises:
        CorpusError: a value does not fit.
    """
    fields = [field for field in schema if field.name in batch.schema.names]
    columns = []
    rows = f"{where}, rows {first} to {first + batch.num_rows - 1}"
    for field in fields:
        try:
            is_chat = field.metadata == CHATS
            column = arrays.stored(batch.column(field.name), field.type, omit_nulls=is_chat)
            column.validate(full=True)  # Parquet promises UTF-8 and does not check it
            columns.append(column)
        except _VALUE_ERRORS as error:
            raise _does_not_fit(rows, field.name, field.type, error) from error
    offsets = pa.array(range(first, first + batch.num_rows), pa.int64())
    if not fields:
        return PartRows(offsets, pa.RecordBatch.from_arrays([], names=[]))
    return PartRows(offsets, pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))


class _Counted:
    """Iterates over batches and counts their rows."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self.rows = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def exceeds(metadata: Any, name: str, bound: int) -> bool:
    """Whether a column of a Parquet file may have an integer beyond `bound`, by its footer."""
    return any(_leaf_exceeds(metadata, leaf, bound) for leaf in _leaves(metadata, name))


def _has_small_integers(file: Any, field: Any) -> bool:
    """Whether the footer says that only integers matter in a column, and none lies beyond 2^53."""
    metadata = file.metadata
    leaves = _leaves(metadata, field.name)
    if not leaves or _has_map(field.type):
        return False
    kinds = [metadata.schema.column(leaf) for leaf in leaves]
    plain = all(
        kind.logical_type.type in ("STRING", "INT")
        or (kind.logical_type.type == "NONE" and kind.physical_type in _PLAIN)
        for kind in kinds
    )
    return plain and not exceeds(metadata, field.name, EXACT_DOUBLE)


def _leaves(metadata: Any, name: str) -> list[int]:
    """The numbers of a column's leaves in a Parquet file. None if its name has dots."""
    schema = metadata.schema
    paths = (schema.column(number).path for number in range(metadata.num_columns))
    return [number for number, path in enumerate(paths) if path.split(".")[0] == name]


def _leaf_exceeds(metadata: Any, leaf: int, bound: int) -> bool:
    kind = metadata.schema.column(leaf)
    if kind.physical_type not in ("INT32", "INT64") or kind.logical_type.type not in _INTEGERS:
        return False
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(leaf)
        statistics = chunk.statistics
        if statistics is None:
            return True
        if not statistics.has_min_max:
            if statistics.null_count != chunk.num_values:
                return True
        elif max(-statistics.min, statistics.max) > bound:
            return True
    return False


def _has_map(data_type: Any) -> bool:
    is_map = bool(pa.types.is_map(data_type))
    return is_map or any(
        _has_map(data_type.field(number).type) for number in range(data_type.num_fields)
    )


def _typed(batches: Iterator[Any], schema: Any, where: str) -> Iterator[PartRows]:
    first = 0
    for batch in batches:
        if batch.num_rows:
            yield typed_rows(batch, first, schema, where)
        first += batch.num_rows


def _does_not_fit(where: str, name: str, data_type: Any, error: Exception) -> CorpusError:
    return CorpusError(f"{where}: column {name!r} does not fit {data_type}: {first_line(error)}")


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
