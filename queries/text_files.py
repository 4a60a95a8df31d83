"""Files of new texts: one per line, or per record."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from featuredb.errors import QueryError, first_line
from queries.arguments import check_text

_BATCH = 1_024
_RECORDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


class Columns(NamedTuple):
    """What a record's text and id are called. id None: ``id``, where there is one."""

    text: str = "text"
    id: str | None = None


def read_texts(path: str, columns: Columns | None = None) -> Iterator[tuple[str | None, str]]:
    """The (id, text) of each record of a file, as it is read. The id is None where there is none.

    A ``.jsonl`` or ``.ndjson`` file has an object with the text and perhaps the id per line, or a
    text. A ``.csv``, ``.tsv`` or ``.parquet`` file has columns of these names. Any other file, and
    ``-`` for standard input, has one text per line. Raises `QueryError`.
    """
    columns = columns or Columns()
    ending = Path(path).suffix.lower()
    if columns != Columns() and ending not in _RECORDS:
        raise QueryError(f"{path} has a text per line, and no columns: leave out their names")
    try:
        if ending == ".parquet":
            yield from _parquet(path, columns)
            return
        with _opened(path) as lines:
            if ending in (".csv", ".tsv"):
                rows = csv.DictReader(lines, delimiter="\t" if ending == ".tsv" else ",")
                yield from (
                    _record(row, path, number, columns) for number, row in enumerate(rows, 1)
                )
            elif ending in (".jsonl", ".ndjson"):
                yield from _json(lines, path, columns)
            else:
                yield from ((None, line.rstrip("\r\n")) for line in lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise QueryError(f"{path} cannot be read as texts: {reason or first_line(error)}") from None


def _opened(path: str) -> Any:
    """A file of text, or standard input, to be read in a with block."""
    if path == "-":
        return nullcontext(_decoded(sys.stdin.buffer))
    return Path(path).expanduser().open(encoding="utf-8-sig", newline="")


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines of UTF-8, whatever the locale's encoding is. Raises `UnicodeDecodeError`."""
    for number, line in enumerate(lines):
        yield line.decode("utf-8" if number else "utf-8-sig")


def _json(lines: Iterable[str], path: str, columns: Columns) -> Iterator[tuple[str | None, str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QueryError(f"{path}, line {number} is not JSON: {first_line(error)}") from None
        if isinstance(value, str) and columns.id is None:
            value = {columns.text: value}
        yield _record(value, path, number, columns)


def _parquet(path: str, columns: Columns) -> Iterator[tuple[str | None, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(Path(path).expanduser()) as file:
            named = (columns.id or "id", columns.text)
            wanted = [name for name in named if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield _record(row, path, number, columns)
    except pa.ArrowException as error:
        raise QueryError(f"{path} cannot be read as Parquet: {first_line(error)}") from None


def _record(row: Any, path: str, number: int, columns: Columns) -> tuple[str | None, str]:
    record = row if isinstance(row, Mapping) else {}
    text = record.get(columns.text)
    if not isinstance(text, str):
        raise QueryError(
            f"{path}, record {number} has no text in {columns.text!r}: "
            "say which column it is (--text-column, where there is that option)"
        )
    if columns.id is not None and columns.id not in record:
        raise QueryError(f"{path}, record {number} has no {columns.id!r}: name another column")
    check_text(text, f"{path}, record {number}")
    name = record.get(columns.id or "id")
    return None if name is None else check_text(str(name), f"the id of record {number}"), text
