"""Labels as tables: CSV, JSON, Parquet and Arrow files.

A row is a label. The columns are those of `queries.labels.Labels`, and what says of which SAE a
row is: sae_sha256, hook and d_sae. A file needs a column of features, named ``feature_id``,
``feature`` or ``index``, and one of texts, named ``text``, ``label``, ``description`` or
``explanation``. All others are optional, and those of other names are left alone.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.feather as pf
import pyarrow.parquet as pq

from featuredb.errors import LabelError, first_line, shortened
from featuredb.labels.batch import COLUMNS, SCORES, LabelBatch
from featuredb.labels.files import parsed, read_bytes
from featuredb.labels.json_lines import json_lines
from featuredb.store.snapshot import Snapshot

_FEATURE = ("feature_id", "feature", "index")
_TEXT = ("text", "label", "description", "explanation")


def read_csv(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`."""
    return _batch(csv_table(path), path)


def csv_table(path: Path) -> pa.Table:
    """A file of CSV. All is text: a spreadsheet's "0012" and "true" are looked at later.

    Raises `LabelError`, also for a quote or a comma that would move text to another row or column.
    """
    text = _text(read_bytes(path), path)
    csv.field_size_limit(sys.maxsize)  # a score's details may be long
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text, path), strict=True)
    names: list[str] = []
    values: list[list[str | None]] = []
    line = 1
    try:
        names = next(rows, [])
        line = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(names):
                more = ": put a text with a comma in quotes" if len(row) > len(names) else ""
                raise LabelError(
                    f"{path}, line {line}, has {len(row)} values for {len(names)} columns{more}"
                )
            if row:
                values.append([value or None for value in row])
            line = rows.line_num + 1
    except csv.Error as error:
        what = (
            "a quote that is never closed"
            if "end of data" in str(error)
            else "text after a closing quote: write a quote within a text twice"
        )
        raise LabelError(f"{path}, line {line}, has {what}") from None
    if not names:
        raise LabelError(f"{path} is not a CSV file: it is empty")
    columns = list(zip(*values, strict=True)) or [()] * len(names)
    return pa.Table.from_arrays([pa.array(each, pa.string()) for each in columns], names)


def _text(data: bytes, path: Path) -> str:
    """The text, of UTF-8, or UTF-16 where it begins so, as spreadsheets save "Unicode text"."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise LabelError(f"{path} is not in UTF-8: save it so")
    return text


def _separator(text: str, path: Path) -> str:
    """What values are separated by: a spreadsheet may write semicolons, as its header shows."""
    if _is_tsv(path):
        return "\t"
    header = text.split("\n", 1)[0]
    for mark in (";", "\t"):
        if mark in header and "," not in header:
            return mark
    return ","


def _is_tsv(path: Path) -> bool:
    return ".tsv" in map(str.lower, path.suffixes)


def read_json(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`. A list of objects, an answer of featuredb's, or an object a line."""
    try:
        value = parsed(read_bytes(path))
    except ValueError:
        value = list(json_lines(path))
    rows = value.get("rows", [value]) if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LabelError(f"{path} is not a list of JSON objects, one for each label")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [pa.array([_cell(row.get(name)) for row in rows], pa.string()) for name in names]
    return _batch(pa.Table.from_arrays(columns, names), path)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def write_json(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. A list with an object a line."""
    path.write_text("[\n" + ",\n".join(_objects(labels, snapshot)) + "\n]\n", encoding="utf-8")


def write_jsonl(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. An object a line."""
    lines = "".join(f"{each}\n" for each in _objects(labels, snapshot))
    path.write_text(lines, encoding="utf-8")


def _objects(labels: pa.Table, snapshot: Snapshot) -> list[str]:
    rows = _with_saes(labels, snapshot).to_pylist()
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def write_csv(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. Scores are JSON in one column."""
    table = _with_saes(labels, snapshot)
    lists = table.column("scores").to_pylist()
    texts = [json.dumps(each, ensure_ascii=False) if each else None for each in lists]
    at = table.schema.get_field_index("scores")
    table = table.set_column(at, "scores", pa.array(texts, pa.string()))
    with path.open("wb") as file:
        pc.write_csv(table, file, pc.WriteOptions(delimiter="\t" if _is_tsv(path) else ","))


def read_parquet(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`."""
    try:
        table = pq.read_table(io.BytesIO(read_bytes(path)))
        table.validate(full=True)
        return _batch(table, path)
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path} is not a Parquet file: {first_line(error)}") from None


def write_parquet(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`."""
    sink = io.BytesIO()  # pyarrow does not write to a pipe
    pq.write_table(_with_saes(labels, snapshot), sink, compression="zstd")
    path.write_bytes(sink.getvalue())


def read_arrow(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`."""
    try:
        table = pf.read_table(io.BytesIO(read_bytes(path)))
        table.validate(full=True)
        return _batch(table, path)
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path} is not an Arrow file: {first_line(error)}") from None


def write_arrow(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`."""
    sink = io.BytesIO()  # as of Parquet
    pf.write_feather(_with_saes(labels, snapshot), sink, compression="zstd")
    path.write_bytes(sink.getvalue())


def _with_saes(labels: pa.Table, snapshot: Snapshot) -> pa.Table:
    saes = [snapshot.sae(name) for name in labels.column("sae").to_pylist()]
    columns = {
        "hook": pa.array([sae.hook for sae in saes], pa.string()),
        "sae_sha256": pa.array([sae.sha256 for sae in saes], pa.string()),
        "d_sae": pa.array([sae.d_sae for sae in saes], pa.int64()),
    }
    for name, column in columns.items():
        labels = labels.append_column(name, column)
    return labels


def _batch(table: pa.Table, path: Path) -> LabelBatch:
    folded = [name.strip().lower().replace(" ", "_") for name in table.column_names]
    known = {*_FEATURE, *_TEXT, *COLUMNS, "scores"}
    pairs = zip(table.column_names, folded, strict=True)
    table = table.rename_columns([low if low in known else name for name, low in pairs])
    twice = [name for name, n in Counter(table.column_names).items() if n > 1]
    if twice:
        raise LabelError(f"{path} has two columns {twice[0]}: keep one of them")
    feature, text = (_only(table, names, path) for names in (_FEATURE, _TEXT))
    names = {feature: "feature_id", text: "text"}
    table = table.rename_columns([names.get(name, name) for name in table.column_names])
    scores = None
    if "scores" in table.column_names:
        scores = _scores(table.column("scores").to_pylist(), path)
    return LabelBatch(table, scores, source=str(path))


def _only(table: pa.Table, names: Sequence[str], path: Path) -> str:
    """The one column of the table with one of these names."""
    found = [name for name in names if name in table.column_names]
    if len(found) == 1:
        return found[0]
    known = shortened(", ".join(map(repr, table.column_names)) or "none")
    if found:
        raise LabelError(f"{path} has columns {' and '.join(found)}: keep one of them")
    raise LabelError(f"{path} has no column {' or '.join(names)}: its columns are {known}")


def _scores(lists: Sequence[Any], path: Path) -> pa.Table:
    """The scores in one column, lists or JSON of them, with the row of each."""
    rows = []
    for row, scores in enumerate(lists):
        try:
            listed = parsed(scores) if isinstance(scores, str) else scores
            for score in listed or ():
                texts = {name: score.get(name) for name in ("scorer", "model", "details")}
                if not all(isinstance(text, str | None) for text in texts.values()):
                    raise TypeError
                rows.append({**texts, "row": row, "value": float(score["value"])})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            what = "its scores are not JSON of scorer and value"
            raise LabelError(f"{path}, row {row + 1}: {what}") from None
    return pa.Table.from_pylist(rows, SCORES)
