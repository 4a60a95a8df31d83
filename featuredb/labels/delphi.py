"""Delphi's results: ``explanations/`` and ``scores/SCORER/``, a file for each latent.

A file is named ``MODULE_latentN.txt``. An explanation is a JSON string. A score is what its scorer
gave for each example, which is kept word for word in the score's details.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import LabelError
from featuredb.labels.batch import SCORES, LabelBatch, check_scorer
from featuredb.labels.files import parsed, read_bytes
from featuredb.store.names import file_name
from featuredb.store.snapshot import Snapshot

_FILE = re.compile(r"(.*)_latent(\d+)\.txt")
_NOTHING = {"No explanation found", "Explanation could not be parsed."}
"""What Delphi writes for none."""


def read(path: Path, _: Snapshot) -> LabelBatch:
    """See `LabelFormat`. The folder of a run, or its ``explanations``."""
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    files = _files(folder)
    if not files:
        raise LabelError(f"{path} has no explanations/MODULE_latentN.txt")
    modules = sorted({module for module, _ in files})
    if len(modules) > 1:
        raise LabelError(
            f"{path} is of several hook points, {', '.join(modules)}: put each in a folder"
        )
    features: list[int] = []
    texts: list[str] = []
    for (_module, feature), file in files.items():
        text = _json(file, read_bytes(file))
        if not isinstance(text, str):
            raise LabelError(f"{file} is no explanation of Delphi's: a JSON string")
        if text not in _NOTHING:
            features.append(feature)
            texts.append(text)
    # As text, which may have any number of digits.
    labels = {"feature_id": pa.array(map(str, features), pa.string())}
    labels["text"] = pa.array(texts, pa.string())
    return LabelBatch(
        pa.table(labels),
        scores=_scores(folder.parent / "scores", features),
        method="delphi",
        source=str(path),
    )


def _files(folder: Path) -> dict[tuple[str, int], Path]:
    """The files of a folder by module and latent, in order."""
    named = [(_FILE.fullmatch(file.name), file) for file in folder.glob("*_latent*.txt")]
    found = {(m[1].replace("--", "/"), int(m[2])): file for m, file in named if m is not None}
    return dict(sorted(found.items()))


def _scores(folder: Path, features: Sequence[int]) -> pa.Table | None:
    row_of = {feature: row for row, feature in enumerate(features)}
    rows = []
    for scorer in sorted(each for each in folder.glob("*") if each.is_dir()):
        for (_module, feature), file in _files(scorer).items():
            if feature in row_of:
                raw = read_bytes(file)
                results = _json(file, raw)
                try:
                    value = score_of(results)
                except (LookupError, TypeError, OverflowError):
                    raise LabelError(f"{file} is no score as Delphi writes it") from None
                if value is not None and isfinite(value):
                    rows.append(
                        {
                            "row": row_of[feature],
                            "scorer": scorer.name,
                            "model": None,
                            "value": value,
                            "details": raw.decode(),
                        }
                    )
    return pa.Table.from_pylist(rows, schema=SCORES) if rows else None


def _json(file: Path, raw: bytes) -> Any:
    try:
        return parsed(raw)
    except ValueError as error:
        raise LabelError(f"{file} is not JSON: {error}") from None


def score_of(results: Any) -> float | None:
    """One number for what a scorer of Delphi's gave. None where nothing was answered.

    Detection and fuzz: the mean of the shares that are right of the activating and of the other
    examples. Intruder: the share that is right. Embedding: the probability that an activating
    example is more similar than another. Simulation: the correlation over all examples.
    """
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        return None
    if any("ev_correlation_score" in each for each in results):
        whole = [each["ev_correlation_score"] for each in results if each.get("distance") == -1]
        numbers = [value for value in whole if isinstance(value, int | float)]
        return float(numbers[0]) if numbers else None
    if any("similarity" in each for each in results):
        return above(
            [each["similarity"] for each in results if each["distance"] >= 0],
            [each["similarity"] for each in results if each["distance"] < 0],
        )
    answered = [each for each in results if each.get("correct") is not None]
    sides = [
        [each["correct"] for each in answered if each.get("activating", True) is side]
        for side in (True, False)
    ]
    shares = [sum(side) / len(side) for side in sides if side]
    return sum(shares) / len(shares) if shares else None


def above(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Probability that a value of one is greater than one of the other, half for equal ones."""
    if not one or not other:
        return None
    wins = sum((a > b) + (a == b) / 2 for a in one for b in other)
    return wins / (len(one) * len(other))


def write(labels: pa.Table, snapshot: Snapshot, path: Path) -> None:
    """See `LabelFormat`. The first label of each feature, and scores with Delphi's details."""
    (path / "explanations").mkdir(parents=True)
    done = set()
    for row in labels.to_pylist():
        module = file_name(snapshot.sae(row["sae"]).hook or row["sae"])
        name = f"{module}_latent{row['feature_id']}"
        if name in done:
            continue
        done.add(name)
        text = json.dumps(row["text"], ensure_ascii=False)
        (path / "explanations" / f"{name}.txt").write_text(text, encoding="utf-8")
        for score in row["scores"]:
            if (score["details"] or "").startswith("["):
                check_scorer(score["scorer"])
                folder = path / "scores" / score["scorer"]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.txt").write_text(score["details"], encoding="utf-8")
