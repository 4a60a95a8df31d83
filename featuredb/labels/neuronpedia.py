"""Neuronpedia's export: ``FOLDER/batch-N.jsonl.gz``, an object a line. Explanations are labels.

`featuredb.interchange.neuronpedia` has the other folders.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from featuredb.errors import LabelError
from featuredb.labels.batch import LabelBatch
from featuredb.labels.json_lines import json_lines
from featuredb.store.snapshot import Snapshot

BATCH = 1_024
"""Features, or explanations, per file, as Neuronpedia's own export has them."""

_LEVEL = 6
"""Of gzip. The highest takes six times as long for 4 % fewer bytes."""


def read(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`. The folder of a source, its ``explanations``, or one file."""
    files = batch_files(path, "explanations/batch-*.jsonl*", "batch-*.jsonl*")
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


def _texts(rows: Sequence[dict[str, Any]], name: str) -> pa.Array:
    values = [row.get(name) for row in rows]
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def write(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. Votes, times, scores and which label is preferred are left out."""
    folder = path / "explanations"
    folder.mkdir(parents=True)
    rows = labels.to_pylist()
    for number, start in enumerate(range(0, len(rows), BATCH)):
        lines = (
            {
                "id": row["label_id"],
                "modelId": snapshot.model.id,
                "layer": row["sae"],
                "index": str(row["feature_id"]),
                "authorId": row["author"],
                "description": row["text"],
                "typeName": row["method"],
                "explanationModelName": row["model"],
            }
            for row in rows[start : start + BATCH]
        )
        write_batch(folder, number, lines)


def batch_files(path: Path, *patterns: str) -> list[Path]:
    """A file itself. Of a folder what the first pattern that finds any finds, by batch."""
    files = [] if path.is_dir() else [path]
    for pattern in patterns:
        files = files or sorted(path.glob(pattern), key=_number)
    return files


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else -1, path.name


def write_batch(folder: Path, number: int, lines: Iterable[Any]) -> int:
    """Write a batch into a folder, and say how many lines it has."""
    written = 0
    path = folder / f"batch-{number}.jsonl.gz"
    with gzip.GzipFile(path, "wb", compresslevel=_LEVEL, mtime=0) as file:
        for line in lines:
            file.write(msgspec.json.encode(line) + b"\n")
            written += 1
    return written
