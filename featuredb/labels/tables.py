"""Labels as tables: CSV, Parquet and Arrow files.

A row is a label. The columns are those of `queries.labels.Labels`, and what says of which SAE a
row is: sae_sha256, hook and d_sae. A file needs a column of features, named ``feature_id``,
``feature`` or ``index``, and one of texts, named ``text``, ``label``, ``description`` or
``explanation``. All others are optional, and those of other names are left alone.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.feather as pf
import pyarrow.parquet as pq

from featuredb.errors import FeatureDBError, LabelError, first_line
from featuredb.labels.batch import LabelBatch
from featuredb.store.snapshot import Snapshot

_FEATURE = ("feature_id", "feature", "index")
_TEXT = ("text", "label", "description", "explanation")


def read_csv(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`."""
    data = _utf8(read_bytes(path), path)
    delimiter = "\t" if _delimiter(path) == "\t" else _separating(data)
    _refuse_open_quote(data, delimiter, path)
    try:
        # Every column is text: a spreadsheet's "0012" and "true" are looked at later.
        header = pc.open_csv(io.BytesIO(data), parse_options=_parse(delimiter)).schema.names
        convert = pc.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        )
        table = pc.read_csv(
            io.BytesIO(data), parse_options=_parse(delimiter), convert_options=convert
        )
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path} is not a CSV file: {first_line(error)}") from None
    return _batch(table, path)


def _utf8(data: bytes, path: Path) -> bytes:
    """The text as UTF-8, from UTF-16 where it begins so, as spreadsheets save "Unicode text"."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError:
        raise LabelError(f"{path} is not in UTF-8: save it so") from None
    return text.encode() if wide else data


def _separating(data: bytes) -> str:
    """What the header's names are separated by: a spreadsheet may write semicolons."""
    header = data.split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    for mark in (";", "\t"):
        if mark in header and "," not in header:
            return mark
    return ","


def _refuse_open_quote(data: bytes, delimiter: str, path: Path) -> None:
    """Raise `LabelError` for a quote that is never closed, which would be one long label."""
    if data.count(b'"') % 2 == 0:
        return
    try:
        for _ in csv.reader(io.StringIO(data.decode()), delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        if "end of data" in str(error):
            raise LabelError(f"{path} has a quote that is never closed") from None


def _delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _parse(delimiter: str) -> pc.ParseOptions:
    return pc.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def write_csv(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. Scores are JSON in one column."""
    table = _with_saes(labels, snapshot)
    lists = table.column("scores").to_pylist()
    texts = [json.dumps(each, ensure_ascii=False) if each else None for each in lists]
    at = table.schema.get_field_index("scores")
    table = table.set_column(at, "scores", pa.array(texts, pa.string()))
    pc.write_csv(table, path, pc.WriteOptions(delimiter=_delimiter(path)))


def read_parquet(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`."""
    try:
        return _batch(pq.read_table(io.BytesIO(read_bytes(path))), path)
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path} is not a Parquet file: {first_line(error)}") from None


def write_parquet(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`."""
    pq.write_table(_with_saes(labels, snapshot), path, compression="zstd")


def read_arrow(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`."""
    try:
        return _batch(pf.read_table(io.BytesIO(read_bytes(path))), path)
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path} is not an Arrow file: {first_line(error)}") from None


def write_arrow(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`."""
    pf.write_feather(_with_saes(labels, snapshot), str(path), compression="zstd")


def read_bytes(path: Path, raising: type[FeatureDBError] = LabelError) -> bytes:
    """A file, decompressed where its name ends in ``.gz``. Raises `raising`."""
    return b"".join(read_lines(path, raising))


def read_lines(path: Path, raising: type[FeatureDBError] = LabelError) -> Iterator[bytes]:
    """Its lines, one after another, as `read_bytes`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = first_line(error)
        raise raising(f"{path} is a damaged gzip file ({what}): get it again") from None
    except OSError as error:
        raise raising(f"cannot read {path}: {error.strerror or first_line(error)}") from None


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
    known = {*_FEATURE, *_TEXT}
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
    known = ", ".join(map(repr, table.column_names)) or "none"
    if found:
        raise LabelError(f"{path} has columns {' and '.join(found)}: keep one of them")
    raise LabelError(f"{path} has no column {' or '.join(names)}: its columns are {known}")


def _scores(lists: Sequence[Any], path: Path) -> pa.Table:
    """The scores in one column, lists or JSON of them, with the row of each."""
    rows = []
    for row, scores in enumerate(lists):
        try:
            listed = json.loads(scores) if isinstance(scores, str) else scores
            for score in listed or ():
                rows.append({**score, "row": row, "value": float(score["value"])})
        except (ValueError, TypeError, KeyError):
            what = "its scores are not JSON of scorer and value"
            raise LabelError(f"{path}, row {row + 1}: {what}") from None
    fields = ("row", "scorer", "model", "value", "details")
    return pa.table({name: [score.get(name) for score in rows] for name in fields})
