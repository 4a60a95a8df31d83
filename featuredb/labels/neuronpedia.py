"""Explanations as Neuronpedia exports them: ``explanations/batch-N.jsonl.gz``, a label a line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import LabelError
from featuredb.labels.batch import LabelBatch
from featuredb.labels.json_lines import json_lines
from featuredb.store.snapshot import Snapshot

_BATCH = 1_024
"""Lines per file, as Neuronpedia's own export has them."""


def read(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`. The folder of a source, its ``explanations``, or one file."""
    files = [path] if not path.is_dir() else []
    for pattern in ("explanations/batch-*.jsonl*", "batch-*.jsonl*"):
        files = files or sorted(path.glob(pattern), key=_number)
    if not files:
        raise LabelError(f"{path} has no explanations/batch-N.jsonl.gz")
    rows: list[dict[str, Any]] = []
    for file in files:
        for number, line in enumerate(json_lines(file), 1):
            if not {"index", "description"} <= line.keys():
                raise LabelError(f"{file}, line {number}: it needs an index and a description")
            rows.append(line)
    sources = sorted({str(row["layer"]) for row in rows if row.get("layer") is not None})
    if len(sources) > 1:
        raise LabelError(f"{path} is of several sources, {', '.join(sources)}: give one at a time")
    return LabelBatch(
        pa.table(
            {
                "feature_id": _texts(rows, "index"),
                "text": _texts(rows, "description"),
                "method": _texts(rows, "typeName"),
                "model": _texts(rows, "explanationModelName"),
                "author": _texts(rows, "authorId"),
            }
        ),
        source=str(path),
    )


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else -1, path.name


def _texts(rows: Sequence[dict[str, Any]], name: str) -> pa.Array:
    values = [row.get(name) for row in rows]
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def write(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. Votes, times, scores and which label is preferred are left out."""
    folder = path / "explanations"
    folder.mkdir(parents=True)
    rows = labels.to_pylist()
    for number, start in enumerate(range(0, len(rows), _BATCH)):
        with gzip.GzipFile(folder / f"batch-{number}.jsonl.gz", "wb", mtime=0) as file:
            for row in rows[start : start + _BATCH]:
                line = {
                    "id": row["label_id"],
                    "modelId": snapshot.model.id,
                    "layer": row["sae"],
                    "index": str(row["feature_id"]),
                    "authorId": row["author"],
                    "description": row["text"],
                    "typeName": row["method"],
                    "explanationModelName": row["model"],
                }
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
