r"""Answers as bytes for other programs.

- `json`: one object, ``{"kind": …, attributes…, "rows": […]}``, a row a line. Answers inside an
  answer (a feature card's contexts and neighbors) are lists of rows under their own names. An
  answer that is a document, such as `Info`, is that document, indented.
- `jsonl`: one object per row, without the attributes.
- `csv`: a header, then the rows, ending in `\n`. Null is empty, lists and structs are JSON.
- `parquet`: the Arrow table, zstd. The attributes are JSON under the key `featuredb` of the
  schema's metadata.

Single-precision values are written with the fewest digits that read back to the same float32. NaN
and the infinities, which JSON cannot say, are null there and `nan`, `inf`, `-inf` in CSV.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast

from featuredb.render.characters import escape_json
from featuredb.render.precision import shortest
from featuredb.render.view import Shown

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["json", "jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("json", "jsonl", "csv", "parquet")


def to_bytes(answer: Shown, form: Format) -> bytes:
    """The whole answer in one format. Text formats are UTF-8."""
    match form:
        case "json":
            return _json(answer)
        case "jsonl":
            return "".join(f"{_dumps(row)}\n" for row in _rows(answer.arrow())).encode()
        case "csv":
            return _csv(answer.arrow())
        case "parquet":
            return _parquet(answer)


def _json(answer: Shown) -> bytes:
    if answer.document is not None:
        text = json.dumps(_plain(answer.document), ensure_ascii=False, allow_nan=False, indent=2)
        return (escape_json(text) + "\n").encode()
    parts = {"kind": _dumps(answer.kind)}
    for name, value in answer.attributes().items():
        parts[name] = _row_lines(value.arrow()) if isinstance(value, Shown) else _dumps(value)
    parts["rows"] = _row_lines(answer.arrow())
    body = ", ".join(f'"{name}": {part}' for name, part in parts.items())
    return f"{{{body}}}\n".encode()


def _row_lines(table: pa.Table) -> str:
    lines = ",\n".join(_dumps(row) for row in _rows(table))
    return f"[\n{lines}\n]" if lines else "[]"


def _csv(table: pa.Table) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow([_csv_cell(value) for value in row.values()])
    return buffer.getvalue().encode()


def _csv_cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case list() | dict():
            return _dumps(value)
        case _:
            return str(_plain(value))


def _parquet(answer: Shown) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = answer.arrow()
    if answer.document is None:
        simple = {k: v for k, v in answer.attributes().items() if not isinstance(v, Shown)}
        about = _dumps({"kind": answer.kind, **simple})
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"featuredb": about.encode()}
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return cast(bytes, sink.getvalue().to_pybytes())


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    names = table.column_names
    for batch in shortest(table).to_batches():
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield dict(zip(names, values, strict=True))


def _dumps(value: Any) -> str:
    return escape_json(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """The value in the types JSON has."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return _number(value)
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _number(value: Decimal) -> int | float | str:
    """DuckDB sums integers and reads `0.5` as decimals. Text only where a float loses digits."""
    if value == value.to_integral_value():
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)
