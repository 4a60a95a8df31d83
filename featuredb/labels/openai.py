"""Explanations of OpenAI's automated interpretability: ``LAYER/NEURON.jsonl`` of scored ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import LabelError
from featuredb.labels.batch import SCORES, LabelBatch
from featuredb.labels.json_lines import json_lines
from featuredb.store.snapshot import Snapshot

_SCORES = ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score")


def read(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`. A file, or a folder of one layer's. The correlation is the score."""
    files = sorted(path.rglob("*.json*")) if path.is_dir() else [path]
    if not files:
        raise LabelError(f"{path} has no NEURON.jsonl")
    labels: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    layers = set()
    for file in files:
        for number, line in enumerate(json_lines(file), 1):
            try:
                layers.add(str(line["neuron_id"]["layer_index"]))
                for each in line["scored_explanations"]:
                    simulated = each.get("scored_simulation") or {}
                    value = simulated.get(_SCORES[0])
                    if isinstance(value, int | float) and math.isfinite(value):
                        kept = {name: simulated.get(name) for name in _SCORES}
                        score = {"row": len(labels), "scorer": "simulation", "model": None}
                        scores.append(score | {"value": value, "details": json.dumps(kept)})
                    neuron = str(line["neuron_id"]["neuron_index"])
                    labels.append({"feature_id": neuron, "text": str(each["explanation"])})
            except (LookupError, TypeError, AttributeError, OverflowError) as error:
                raise LabelError(
                    f"{file}, line {number}, has no neuron_id and scored_explanations ({error!r})"
                ) from None
    if len(layers) > 1:
        raise LabelError(f"{path} has layers {', '.join(sorted(layers))}: give one layer at a time")
    columns = {name: pa.string() for name in ("feature_id", "text")}
    return LabelBatch(
        pa.Table.from_pylist(labels, schema=pa.schema(columns)),
        scores=pa.Table.from_pylist(scores, schema=SCORES) if scores else None,
        method="openai",
        source=str(path),
    )
