"""Neuronpedia's files: features and activations as lines of JSON, and SAEDashboard's batches.

A folder of a source has ``features/batch-N.jsonl.gz`` and ``activations/batch-N.jsonl.gz``.
SAEDashboard writes ``batch-N.json`` with both. Either has examples of each feature, not every
activation. Equal texts of several features become one context.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from featuredb.database import Database
from featuredb.errors import IngestError, first_line
from featuredb.interchange.reading import Reading
from featuredb.labels.files import parsed
from featuredb.labels.json_lines import json_lines
from featuredb.labels.neuronpedia import BATCH, batch_files, write_batch
from featuredb.store.files.atomic import sha256_of
from featuredb.store.snapshot import Sae
from ingest.operations.import_activations import (
    MOST_FEATURES,
    ImportedActivations,
    Sequences,
    SourceFacts,
    beyond,
)

_ROWS = 2_048
"""Examples that are in memory as Python's objects at once."""

_MOST = 20
"""Top contexts per feature. Of each fifth the store has no more than four."""


_DIGITS = 18
"""A number of more digits is none of a feature."""

_T = TypeVar("_T")


class _Example(msgspec.Struct):
    """The tokens of an example and the activation of each."""

    tokens: list[str]
    values: list[float]


class _Line(_Example):
    """An example in Neuronpedia's files."""

    index: int | str
    modelId: str | None = None
    layer: int | str | None = None


class _Feature(msgspec.Struct):
    feature_index: int | str
    activations: list[_Example]


class _Batch(msgspec.Struct):
    """A file of SAEDashboard."""

    model_id: str
    layer: int | str
    sae_set: str
    features: list[_Feature]


def read(path: Path, reading: Reading) -> NeuronpediaFiles:
    """A folder of a source, or of SAEDashboard, or one file of either. Raises `IngestError`."""
    patterns = ("activations/batch-*.jsonl*", "batch-*.jsonl*", "batch-*.json")
    files = batch_files(path, *patterns)
    if not files:
        raise IngestError(f"{path} has no batch-N.json, and no activations/batch-N.jsonl.gz")
    return NeuronpediaFiles(path, files, reading)


class NeuronpediaFiles:
    """See `ingest.operations.import_activations.ActivationSource`.

    The files are read once, into tables that spill to disk. The vocabulary is in memory, and of
    SAEDashboard's files one at a time.
    """

    def __init__(self, path: Path, files: list[Path], reading: Reading) -> None:
        self._path = path
        self._files = files
        self._reading = reading
        self._tokens: dict[str, int] = {}
        self._model, self._source, self._last = "", "", 0
        self._connection = reading.scratch()
        self._run(
            "CREATE TABLE examples (row BIGINT, feature BIGINT, words BLOB, key BLOB, "
            "ids UINTEGER[], places INTEGER[], activations FLOAT[])"
        )
        examples = (self._row(f, *each) for f in files for each in self._examples(f))
        number = 0
        while rows := list(islice(examples, _ROWS)):
            given = pa.Table.from_pylist(rows, _EXAMPLE)
            numbers = pa.array(range(number, number + len(rows)), pa.int64())
            self._connection.register("given", given.add_column(0, "row", numbers))
            self._run("INSERT INTO examples FROM given")
            self._connection.unregister("given")
            number += len(rows)
        if not number:
            raise IngestError(f"{path} has no activations")
        for statement in _TABLES:
            self._run(statement)

    def _examples(self, file: Path) -> Iterator[tuple[int, _Example]]:
        if not file.name.endswith(".json"):
            for number, given in enumerate(json_lines(file, IngestError), 1):
                line = _typed(given, _Line, f"{file}, object {number}")
                self._model = self._same(file, "model", self._model, line.modelId)
                self._source = self._same(file, "source", self._source, line.layer)
                yield self._index(file, line.index), line
            return
        try:
            given = parsed(file.read_bytes())
        except OSError as error:
            raise IngestError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise IngestError(f"{file} is not JSON: {first_line(error)}") from error
        batch = _typed(given, _Batch, f"{file} is no batch of SAEDashboard")
        self._model = self._same(file, "model", self._model, batch.model_id)
        self._source = self._same(file, "source", self._source, f"{batch.layer}-{batch.sae_set}")
        for feature in batch.features:
            index = self._index(file, feature.feature_index)
            for example in feature.activations:
                yield index, example

    def _same(self, file: Path, what: str, before: str, now: int | str | None) -> str:
        """What the files say that they are of. Raises `IngestError` if it is not the same."""
        name = "" if now is None else str(now)
        if before and name and name != before:
            raise IngestError(
                f"{file} is of another {what}, {name!r}, than {before!r} before: give one at a time"
            )
        return before or name

    def _index(self, file: Path, given: int | str) -> int:
        """The number of a feature, which may be written as text."""
        digits = str(given)
        if not (digits.isascii() and digits.isdigit()) or len(digits) > _DIGITS:
            raise IngestError(f"{file}: {digits[:_DIGITS]!r} is not the number of a feature")
        index = int(digits)
        if index >= MOST_FEATURES:
            raise beyond(file, "feature", index, MOST_FEATURES)
        self._last = max(self._last, index)
        return index

    def _row(self, file: Path, index: int, example: _Example) -> dict[str, Any]:
        """An example as a row of `_EXAMPLE`."""
        words, numbers = example.tokens, np.array(example.values)
        if len(words) != len(numbers) or not words:
            raise IngestError(
                f"{file}: an activation of feature {index} has {len(words)} tokens and "
                f"{len(numbers)} values"
            )
        known = self._tokens
        ids = np.array([known.setdefault(word, len(known)) for word in words], np.uint32)
        with np.errstate(over="ignore"):  # what is no finite float32 is refused later
            narrow = numbers.astype(np.float32)
        places = np.flatnonzero(narrow).astype(np.int32)
        return {
            "feature": index,
            "words": blake2b(ids.tobytes(), digest_size=16).digest(),
            "key": blake2b(narrow.tobytes(), digest_size=16).digest(),
            "ids": ids,
            "places": places,
            "activations": narrow[places],
        }

    @cached_property
    def facts(self) -> SourceFacts:
        longest, tokens = self._one("SELECT max(n), sum(n)::BIGINT FROM sequences")
        (n_activations,) = self._one("SELECT count(*) FROM activations")
        return SourceFacts(
            format="neuronpedia",
            source=str(self._path),
            fingerprint=sha256_of(*self._files),
            name=self._reading.name or self._source.replace("/", "-") or self._path.stem,
            hook=self._reading.hook,
            model=self._reading.model or self._model,
            d_sae=self._reading.features or self._last + 1,
            context_size=longest,
            n_tokens=tokens,
            n_activations=n_activations,
            metadata=pa.schema([]),
        )

    def _run(self, statement: str) -> None:
        try:
            self._connection.execute(statement)
        except duckdb.Error as error:  # no room to spill to
            raise IngestError(f"{self._path} cannot be read: {first_line(error)}") from error

    def _one(self, query: str) -> Any:
        return self._connection.sql(query).fetchall()[0]

    def vocabulary(self) -> list[str]:
        return list(self._tokens)

    def sequences(self) -> Iterator[Sequences]:
        query = "SELECT ids FROM sequences JOIN examples USING (row) ORDER BY number"
        for batch in self._connection.sql(query).to_arrow_reader(_ROWS):
            ids = batch.column(0)
            lengths = np.diff(ids.offsets.to_numpy()).astype(np.int32)
            nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * len(ids), pa.struct([])))
            yield Sequences(ids.flatten().to_numpy(), lengths, nothing)

    def activations(self, first: int, end: int) -> ImportedActivations:
        query = f"FROM activations WHERE number >= {first} AND number < {end}"
        columns = self._connection.sql(query).to_arrow_table().columns
        return ImportedActivations(*(column.to_numpy() for column in columns))


def _typed(given: Any, kind: type[_T], where: str) -> _T:
    """A value of JSON as a struct. Raises `IngestError` saying what of it is not as it must be."""
    try:
        return msgspec.convert(given, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise IngestError(f"{where}: {first_line(error)}") from error


_EXAMPLE = pa.schema(
    [
        ("feature", pa.int64()),
        ("words", pa.binary()),
        ("key", pa.binary()),
        ("ids", pa.list_(pa.uint32())),
        ("places", pa.list_(pa.int32())),
        ("activations", pa.list_(pa.float32())),
    ]
)
"""An example. words and key: hashes of its tokens and of the activations of all of them."""

_TABLES = (
    # An example may be in the top and in an interval. Cut from other places, equal words may have
    # other activations, and need a context of their own: a copy.
    """CREATE TABLE kept AS
SELECT row, feature, words, row_number() OVER (PARTITION BY feature, words ORDER BY row) AS copy
FROM (SELECT min(row) AS row, feature, words FROM examples GROUP BY feature, words, key)""",
    """CREATE TABLE sequences AS
SELECT s.*, len(ids) AS n, row_number() OVER (ORDER BY row) - 1 AS number
FROM (SELECT min(row) AS row, words, copy FROM kept GROUP BY words, copy) AS s
JOIN examples USING (row)""",
    # By number, so that a range of sequences is a range of rows.
    """CREATE TABLE activations AS
SELECT number, unnest(places)::BIGINT AS place, feature, unnest(activations) AS activation
FROM (
    SELECT s.number, k.row FROM kept AS k JOIN sequences AS s USING (words, copy)
) JOIN examples USING (row) ORDER BY number""",
)
"""Which examples count, the sequences they are of, and their activations."""


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
