"""Goodfire's labels of SAEs of DeepSeek R1: the table ``autointerp``, as SQLite, DuckDB or CSV."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from featuredb.errors import LabelError, first_line, shortened
from featuredb.labels.batch import SCORES, LabelBatch
from featuredb.labels.tables import csv_table
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
    for number, row in enumerate(rows, 1):
        for name in _COLUMNS:
            if isinstance(row.get(name), bytes):
                raise LabelError(f"{path}, row {number}: {name} is neither text nor a number")
    missing = {"feature_id", "label"} - set(rows[0] if rows else _COLUMNS)
    if missing:
        raise LabelError(f"{path}: autointerp has no column {' or '.join(sorted(missing))}")
    # CSV has empty columns where a row has none.
    versions = [row.get("prompt_version") for row in rows]
    scores = [
        {
            "row": number,
            "scorer": scorer,
            "model": _text(row.get("model_name")),
            "value": _number(row[scorer], f"{path}, row {number + 1}: {scorer}"),
            "details": _details(row),
        }
        for number, row in enumerate(rows)
        for scorer in _SCORERS
        if row.get(scorer) not in (None, "")
    ]
    labels = {
        "feature_id": pa.array([str(row["feature_id"]) for row in rows], pa.string()),
        "text": pa.array([_text(row["label"]) for row in rows], pa.string()),
        "method": pa.array([f"{_METHOD} {v}" if v else _METHOD for v in versions], pa.string()),
        "model": pa.array([_text(row.get("model_name")) for row in rows], pa.string()),
    }
    scored = pa.Table.from_pylist(scores, SCORES)
    return LabelBatch(pa.table(labels), scores=scored, source=str(path))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise LabelError(f"{what} is {shortened(repr(value))}, no number") from None


def _details(row: dict[str, Any]) -> str | None:
    kept = {
        name: row[name] for name in ("seqs", "indices") if row.get(name) not in (None, "", "[]")
    }
    return json.dumps(kept, ensure_ascii=False, default=str) if kept else None


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"SQLite format 3"):
            with closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            ) as database:
                database.row_factory = sqlite3.Row
                asked = database.execute("SELECT * FROM autointerp ORDER BY rowid")
                return [dict(row) for row in asked]
        if start[8:12] == b"DUCK":
            with duckdb.connect(str(path), read_only=True) as database:
                rows: list[dict[str, Any]] = (
                    database.sql("FROM autointerp").to_arrow_table().to_pylist()
                )
                return rows
        listed: list[dict[str, Any]] = csv_table(path).to_pylist()
        return listed
    except OSError as error:
        raise LabelError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except (sqlite3.Error, duckdb.Error) as error:
        raise LabelError(f"{path} has no labels of Goodfire's: {first_line(error)}") from None


def write(labels: pa.Table, _: Snapshot, path: Path) -> None:
    """See `LabelFormat`. SQLite, the first label of each feature."""
    saes = labels.column("sae").unique().to_pylist()
    if len(saes) > 1:
        raise LabelError(f"goodfire's table is of one SAE: say which with sae, {', '.join(saes)}")
    rows: dict[int, tuple[Any, ...]] = {}
    for row in labels.to_pylist():
        scores = {s["scorer"]: s for s in row["scores"] if s["scorer"] in _SCORERS}
        details = next((s["details"] for s in scores.values() if s["details"]), None)
        seqs, indices = _kept(details)
        method = row["method"]
        rows.setdefault(
            row["feature_id"],
            (
                row["feature_id"],
                row["text"],
                seqs,
                indices,
                *(scores[name]["value"] if name in scores else None for name in _SCORERS),
                row["model"],
                method.removeprefix(f"{_METHOD} ") if method != _METHOD else None,
            ),
        )
    # In memory: SQLite cannot write to a pipe.
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(
            "CREATE TABLE autointerp(feature_id INTEGER PRIMARY KEY, label TEXT, seqs TEXT, "
            "indices TEXT, quality REAL, interestingness REAL, model_name TEXT, "
            "prompt_version TEXT)"
        )
        database.executemany("INSERT INTO autointerp VALUES (?,?,?,?,?,?,?,?)", rows.values())
        database.commit()
        path.write_bytes(database.serialize())


def _kept(details: str | None) -> tuple[str, str]:
    """The sequences and indices in a score's details, which may be of another kind."""
    try:
        kept = json.loads(details or "{}")
    except ValueError:
        kept = {}
    given = (kept.get(name, []) if isinstance(kept, dict) else [] for name in ("seqs", "indices"))
    seqs, indices = (each if isinstance(each, str) else json.dumps(each) for each in given)
    return seqs, indices
