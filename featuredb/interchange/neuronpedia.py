"""Neuronpedia's files: features and activations as lines of JSON, and SAEDashboard's batches.

A folder of a source has ``features/batch-N.jsonl.gz`` and ``activations/batch-N.jsonl.gz``.
SAEDashboard writes ``batch-N.json`` with both. Either has examples of each feature, not every
activation. Equal texts of several features become one context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featuredb.database import Database
from featuredb.errors import IngestError, first_line
from featuredb.interchange.reading import Reading
from featuredb.labels.json_lines import json_lines
from featuredb.labels.neuronpedia import BATCH, batch_files, write_batch
from featuredb.store.files.atomic import sha256_of
from featuredb.store.snapshot import Sae
from ingest.operations.import_activations import ImportedActivations, Sequences, SourceFacts

_ROWS = 2_048
"""Examples that are in memory as Python's objects at once."""

_MOST = 20
"""Top contexts per feature. Of each fifth the store has no more than four."""


def read(path: Path, reading: Reading) -> NeuronpediaFiles:
    """A folder of a source, or of SAEDashboard, or one file of either. Raises `IngestError`."""
    patterns = ("activations/batch-*.jsonl*", "batch-*.jsonl*", "batch-*.json")
    files = batch_files(path, *patterns)
    if not files:
        raise IngestError(f"{path} has no batch-N.json, and no activations/batch-N.jsonl.gz")
    return NeuronpediaFiles(path, files, reading)


class NeuronpediaFiles:
    """See `ingest.operations.import_activations.ActivationSource`. Held in memory."""

    def __init__(self, path: Path, files: list[Path], reading: Reading) -> None:
        self._path = path
        self._files = files
        self._reading = reading
        self._tokens: dict[str, int] = {}
        self._sequences: dict[tuple[tuple[str, ...], int], int] = {}
        self._seen: dict[tuple[int, tuple[str, ...]], list[list[float]]] = {}
        self._places: dict[tuple[int, int, int], float] = {}
        self._model, self._source, self._last = reading.model, "", 0
        for file in files:
            for feature, tokens, values in self._examples(file):
                self._add(file, feature, tokens, values)
        if not self._sequences:
            raise IngestError(f"{path} has no activations")

    def _examples(self, file: Path) -> Iterator[tuple[Any, Any, Any]]:
        if file.name.endswith(".json"):
            try:
                batch = json.loads(file.read_bytes())
                self._model = self._model or str(batch["model_id"])
                self._source = f"{batch['layer']}-{batch['sae_set']}"
                for feature in batch["features"]:
                    self._last = max(self._last, int(feature["feature_index"]))
                    for each in feature["activations"]:
                        yield feature["feature_index"], each["tokens"], each["values"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise IngestError(
                    f"{file} is no batch of SAEDashboard: {first_line(error)}"
                ) from error
            return
        for line in json_lines(file, IngestError):
            if not {"index", "tokens", "values"} <= line.keys():
                raise IngestError(f"{file} has a line without index, tokens and values")
            self._model = self._model or str(line.get("modelId", ""))
            self._source = self._source or str(line.get("layer", ""))
            yield line["index"], line["tokens"], line["values"]

    def _add(self, file: Path, feature: Any, tokens: Any, values: Any) -> None:
        try:
            index = int(feature)
            words = tuple(str(token) for token in tokens)
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise IngestError(f"{file}: feature {feature!r}: {first_line(error)}") from error
        if len(words) != len(numbers) or not words:
            raise IngestError(
                f"{file}: an activation of feature {index} has {len(words)} tokens and "
                f"{len(numbers)} values"
            )
        self._last = max(self._last, index)
        for word in words:
            self._tokens.setdefault(word, len(self._tokens))
        known = self._seen.setdefault((index, words), [])
        if numbers in known:
            return  # in the top and in an interval
        # Cut from other places, equal words may have other activations: a context of its own.
        key = words, len(known)
        known.append(numbers)
        sequence = self._sequences.setdefault(key, len(self._sequences))
        for place, value in enumerate(numbers):
            if value:
                self._places[sequence, place, index] = value

    @cached_property
    def _rows(self) -> ImportedActivations:
        keys = np.array(list(self._places), np.int64).reshape(-1, 3)
        values = np.array(list(self._places.values()), np.float32)
        sequence, token, feature = keys.T
        return ImportedActivations(sequence, token, feature, values).by_sequence()

    @cached_property
    def facts(self) -> SourceFacts:
        lengths = [len(words) for words, _ in self._sequences]
        return SourceFacts(
            format="neuronpedia",
            source=str(self._path),
            fingerprint=sha256_of(*self._files),
            name=self._reading.name or self._source.replace("/", "-") or self._path.stem,
            hook=self._reading.hook,
            model=self._model,
            d_sae=self._reading.features or self._last + 1,
            context_size=max(lengths),
            n_tokens=sum(lengths),
            n_activations=len(self._places),
            metadata=pa.schema([]),
        )

    def vocabulary(self) -> list[str]:
        return list(self._tokens)

    def sequences(self) -> Iterator[Sequences]:
        lengths = np.array([len(words) for words, _ in self._sequences], np.int32)
        ids = np.array([self._tokens[w] for words, _ in self._sequences for w in words], np.uint32)
        nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * len(lengths), pa.struct([])))
        yield Sequences(ids, lengths, nothing)

    def activations(self, first: int, end: int) -> ImportedActivations:
        return self._rows.between(first, end)


def write(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`. Features and the stored examples of each, by quantile."""
    model, source = database.snapshot.model.id, sae.name
    total = 0
    for folder in ("features", "activations"):
        (path / folder).mkdir(parents=True)
    for number, first in enumerate(range(0, sae.d_sae, BATCH)):
        asked = [sae.name, first, first + BATCH]
        named = {"modelId": model, "layer": source}
        features = (named | _feature(row) for row in _rows(database, FEATURES, asked))
        write_batch(path / "features", number, features)
        examples = (
            {"id": f"{source}-{first}-{i}"} | named | _example(row)
            for i, row in enumerate(_rows(database, EXAMPLES, asked))
        )
        total += write_batch(path / "activations", number, examples)
    return total


def _rows(database: Database, statement: str, asked: list[Any]) -> Iterator[dict[str, Any]]:
    for rows in database.sql(statement, asked).to_arrow_reader(_ROWS):
        yield from rows.to_pylist()


FEATURES = """SELECT feature_id, density, min_activation, max_activation, quantiles,
histogram, promoted_tokens, suppressed_tokens FROM features
WHERE sae = ? AND feature_id >= ? AND feature_id < ? ORDER BY feature_id"""

EXAMPLES = f"""WITH chosen AS (
    SELECT feature_id, kind, rank, context_id, token_indexes, activations FROM examples
    WHERE sae = ? AND feature_id >= ? AND feature_id < ? AND rank <= {_MOST}
), words AS (
    SELECT context_id, list(text ORDER BY i) AS tokens FROM (
        SELECT context_id, unnest(token_ids) AS token_id, generate_subscripts(token_ids, 1) AS i
        FROM contexts SEMI JOIN chosen USING (context_id)
    ) JOIN vocabulary USING (token_id) GROUP BY context_id
)
SELECT feature_id, kind, rank, token_indexes, activations, tokens
FROM chosen JOIN words USING (context_id) ORDER BY feature_id, kind, rank"""
"""Of a range of features: the stored examples, top contexts first, then from each fifth."""


def _feature(row: dict[str, Any]) -> dict[str, Any]:
    largest = row["max_activation"] or 0.0
    bins = row["histogram"] or []
    return {
        "index": str(row["feature_id"]),
        "maxActApprox": largest,
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_heights": bins,
        "freq_hist_data_bar_values": [largest * (i + 0.5) / len(bins) for i in range(len(bins))],
        "pos_str": [each["token"] for each in row["promoted_tokens"]],
        "pos_values": [each["logit"] for each in row["promoted_tokens"]],
        "neg_str": [each["token"] for each in row["suppressed_tokens"]],
        "neg_values": [each["logit"] for each in row["suppressed_tokens"]],
    }


def dense_values(row: dict[str, Any]) -> list[float]:
    """The activation of each token of a row of `EXAMPLES`."""
    values = [0.0] * len(row["tokens"])
    for place, value in zip(row["token_indexes"], row["activations"], strict=True):
        values[place] = value
    return values


def _example(row: dict[str, Any]) -> dict[str, Any]:
    values = dense_values(row)
    return {
        "index": str(row["feature_id"]),
        "tokens": row["tokens"],
        "values": values,
        "maxValue": max(values),
        "minValue": min(values),
        "maxValueTokenIndex": values.index(max(values)),
        "binMin": None,
        "binMax": None,
        "binContains": None,
    }
