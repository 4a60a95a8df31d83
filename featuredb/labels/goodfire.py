"""Goodfire's labels of SAEs of DeepSeek R1: the table ``autointerp``, as SQLite, DuckDB or CSV."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from featuredb.errors import LabelError, first_line
from featuredb.labels.batch import LabelBatch
from featuredb.store.snapshot import Snapshot

_COLUMNS = (
    "feature_id",
    "label",
    "seqs",
    "indices",
    "quality",
    "interestingness",
    "model_name",
    "prompt_version",
)
_SCORERS = ("quality", "interestingness")
_METHOD = "goodfire"


def read(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`. quality and interestingness become scores."""
    rows = _rows(path)
    missing = {"feature_id", "label"} - set(rows[0] if rows else _COLUMNS)
    if missing:
        raise LabelError(f"{path}: autointerp has no column {' or '.join(sorted(missing))}")
    # CSV has empty columns where a row has none.
    versions = [row.get("prompt_version") for row in rows]
    scores = [
        {
            "row": number,
            "scorer": scorer,
            "model": row.get("model_name"),
            "value": row[scorer],
            "details": _details(row),
        }
        for number, row in enumerate(rows)
        for scorer in _SCORERS
        if row.get(scorer) not in (None, "")
    ]
    labels = {
        "feature_id": pa.array([str(row["feature_id"]) for row in rows], pa.string()),
        "text": pa.array([row["label"] for row in rows], pa.string()),
        "method": pa.array([f"{_METHOD} {v}" if v else _METHOD for v in versions], pa.string()),
        "model": pa.array([row.get("model_name") for row in rows], pa.string()),
    }
    table = None
    if scores:
        try:
            values = [float(score["value"]) for score in scores]
        except (TypeError, ValueError) as error:
            raise LabelError(f"{path}: a score is no number: {first_line(error)}") from None
        names = ("row", "scorer", "model", "details")
        table = pa.table({name: [score[name] for score in scores] for name in names})
        table = table.append_column("value", pa.array(values, pa.float64()))
    return LabelBatch(pa.table(labels), scores=table, source=str(path))


def _details(row: dict[str, Any]) -> str | None:
    kept = {
        name: row[name] for name in ("seqs", "indices") if row.get(name) not in (None, "", "[]")
    }
    return json.dumps(kept, ensure_ascii=False) if kept else None


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"SQLite format 3"):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                database.row_factory = sqlite3.Row
                asked = database.execute("SELECT * FROM autointerp ORDER BY rowid")
                return [dict(row) for row in asked]
        if start[8:12] == b"DUCK":
            with duckdb.connect(str(path), read_only=True) as database:
                rows: list[dict[str, Any]] = (
                    database.sql("FROM autointerp").to_arrow_table().to_pylist()
                )
                return rows
        relation = duckdb.read_csv(str(path), all_varchar=True, header=True)
        listed: list[dict[str, Any]] = relation.to_arrow_table().to_pylist()
        return listed
    except OSError as error:
        raise LabelError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except (sqlite3.Error, duckdb.Error) as error:
        raise LabelError(f"{path} has no labels of Goodfire's: {first_line(error)}") from None


def write(labels: pa.Table, _: Snapshot, path: Path) -> None:
    """See `LabelFormat`. SQLite, the first label of each feature."""
    rows: dict[int, Sequence[Any]] = {}
    for row in labels.to_pylist():
        scores = {s["scorer"]: s for s in row["scores"] if s["scorer"] in _SCORERS}
        details = next((s["details"] for s in scores.values() if s["details"]), None)
        kept = json.loads(details) if details else {}
        method = row["method"]
        rows.setdefault(
            row["feature_id"],
            (
                row["feature_id"],
                row["text"],
                kept.get("seqs", "[]"),
                kept.get("indices", "[]"),
                *(scores[name]["value"] if name in scores else None for name in _SCORERS),
                row["model"],
                method.removeprefix(f"{_METHOD} ") if method != _METHOD else None,
            ),
        )
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE autointerp(feature_id INTEGER PRIMARY KEY, label TEXT, seqs TEXT, "
            "indices TEXT, quality REAL, interestingness REAL, model_name TEXT, "
            "prompt_version TEXT)"
        )
        database.executemany("INSERT INTO autointerp VALUES (?,?,?,?,?,?,?,?)", rows.values())
