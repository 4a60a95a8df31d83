"""Features as circuit-tracer's browser reads them: a JSON file each, with examples by quantile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featuredb.database import Database
from featuredb.interchange.neuronpedia import EXAMPLES, FEATURES, dense_values
from featuredb.store.snapshot import Sae

_BLOCK = 512


def write(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`. ``NUMBER.json`` for each feature that fires."""
    path.mkdir()
    total = 0
    for first in range(0, sae.d_sae, _BLOCK):
        asked = [sae.name, first, first + _BLOCK]
        examples: dict[int, list[dict[str, Any]]] = {}
        for row in database.sql(EXAMPLES, asked).to_arrow_table().to_pylist():
            examples.setdefault(row["feature_id"], []).append(row)
        for row in database.sql(FEATURES, asked).to_arrow_table().to_pylist():
            number = row["feature_id"]
            if number in examples:
                written = _feature(row, sae, examples[number])
                text = json.dumps(written, ensure_ascii=False, allow_nan=False)
                (path / f"{number}.json").write_text(text, encoding="utf-8")
                total += len(examples[number])
    return total


def _feature(row: dict[str, Any], sae: Sae, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    quantiles = {quantile["q"]: quantile["value"] for quantile in row["quantiles"]}
    kinds = sorted({each["kind"] for each in examples}, key=lambda kind: (kind > 0, -kind))
    return {
        "index": row["feature_id"],
        "transcoder_id": sae.name,
        "examples_quantiles": [
            {
                "quantile_name": "Top activations"
                if kind == 0
                else f"Subsample interval {6 - kind}",
                "examples": [_example(each) for each in examples if each["kind"] == kind],
            }
            for kind in kinds
        ],
        "top_logits": [each["token"] for each in row["promoted_tokens"]],
        "bottom_logits": [each["token"] for each in row["suppressed_tokens"]],
        "act_min": row["min_activation"],
        "act_max": row["max_activation"],
        "quantile_values": list(quantiles.values()),
        "histogram": row["histogram"],
        "activation_frequency": row["density"],
    }


def _example(row: dict[str, Any]) -> dict[str, Any]:
    values = dense_values(row)
    return {
        "tokens_acts_list": values,
        "train_token_ind": values.index(max(values)),
        "is_repeated_datapoint": False,
        "tokens": row["tokens"],
    }
