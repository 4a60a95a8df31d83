"""Records of CSV and TSV files, and the types of their fields."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import CorpusError
from ingest.corpus import schema as typing_rules
from ingest.corpus.arrays import STRING
from ingest.corpus.json_values import number
from ingest.corpus.part import Record
from ingest.corpus.stream import lines

# Codes such as "007" or "1e5" stay text: as numbers they would not round-trip.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")


def comma_separated(path: Path, _: str) -> Iterator[Record]:
    """Yield the rows of a CSV file by number, fields as strings."""
    yield from _records(path, partial(csv.reader, delimiter=",", strict=True), ",")


def tab_separated(path: Path, _: str) -> Iterator[Record]:
    """Yield the rows of a TSV file by number, fields as strings.

    The format has no quotes, so they are text, unless the file is plainly of a writer of CSV
    (`_is_quoted`).
    """
    reader = partial(csv.reader, delimiter="\t", strict=True)
    if not _is_quoted(path):
        reader = partial(reader, quoting=csv.QUOTE_NONE)
    yield from _records(path, reader, "\t")


def field_type(value: str) -> Any:
    """The type of a field by its text alone."""
    if not value:
        return typing_rules.NULL
    if _INTEGER.fullmatch(value):
        return typing_rules.type_of(int(value))
    if _DECIMAL.fullmatch(value):
        return typing_rules.type_of(number(value))
    return typing_rules.type_of(True) if _truth(value) is not None else STRING


def field_value(value: str | None, data_type: Any) -> Any:
    """The value of a field in a column of `data_type`."""
    if value is None or pa.types.is_string(data_type):
        return value
    if not value:
        return None
    if pa.types.is_boolean(data_type):
        return _truth(value)
    is_integer = _INTEGER.fullmatch(value) is not None
    return int(value) if is_integer else float(value)


def _truth(value: str) -> bool | None:
    return {"true": True, "false": False}.get(value.lower())


def _records(path: Path, reader: Any, delimiter: str) -> Iterator[Record]:
    # The limit of 128 KiB per field is process-wide, so it is only raised.
    csv.field_size_limit(sys.maxsize)
    rows = reader(line.text for line in lines(path))
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


def _is_quoted(path: Path) -> bool:
    """Whether a TSV file was written with the quotes of CSV.

    It was if every field of the header is in quotes, or without quotes some line has too few or too
    many fields, or if all quotes stand as such a writer sets them: around whole fields, with
    doubled ones inside some. Quotes around a field that needs none are text.
    """
    header: list[str] | None = None
    stray = doubled = False
    for line in lines(path):
        fields = line.text.rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        if header is None:
            header = fields
            if all(_content(name) is not None for name in header):
                return True
        if len(fields) != len(header):
            return True
        for field in fields if '"' in line.text else ():
            content = _content(field) if '"' in field else ""
            stray |= content is None
            doubled |= bool(content) and '"' in str(content)
    return doubled and not stray


def _content(field: str) -> str | None:
    """What a writer of CSV put in quotes. None if it did not."""
    content = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"':
        return None
    return None if '"' in content.replace('""', "") else content
