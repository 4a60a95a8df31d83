"""Delphi's cache of latents: a folder per hook point, with safetensors files by range of latents.

``<first>_<last>.safetensors`` has ``locations`` [n, 3] (row, token, latent - first),
``activations`` [n], float16 where that is exact, and ``tokens`` int64 [rows, length]. The file
``config.json`` says of which model and texts. Rows have one length, so what is written from shorter
contexts is padded, and ``lengths`` [rows], which Delphi leaves alone, says how far.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.database import Database
from featuredb.errors import IngestError, first_line
from featuredb.interchange.reading import Reading
from featuredb.store.files.atomic import sha256_of
from featuredb.store.names import file_name
from featuredb.store.snapshot import Sae
from ingest.operations.import_activations import (
    MOST_FEATURES,
    MOST_TOKENS,
    ImportedActivations,
    Sequences,
    SourceFacts,
    beyond,
)

_SPLITS = 5
"""Files per hook point, as Delphi's own default, and more where they would be large."""

_PER_FILE = 1 << 24
"""Activations that a file of a range of latents has on average at most: they are in memory, at up
to 60 bytes each."""

_ROWS = 4_096

_AT_ONCE = 1 << 21
"""Activations read at a time."""

_COLUMNS = list(ImportedActivations._fields)
_FILE = re.compile(r"(\d+)_(\d+)\.safetensors")


@dataclass(frozen=True)
class _Split:
    """One file, its latents first <= id <= last."""

    path: Path
    first: int
    last: int

    def load(self, *names: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of these names, as far as there are any. No others are read."""
        with self._open() as file:
            there = set(file.keys())
            return {name: file.get_tensor(name) for name in names if name in there}

    def activations(self, rows: int, width: int) -> Iterator[pa.Table]:
        """Rows of (sequence, token_index, feature_id, activation), some millions at a time.

        rows, width: of the tokens. Raises `IngestError` for a place that is not among them.
        """
        with self._open() as file:
            there = set(file.keys())
            slices = {}
            for name, dimensions in (("locations", 2), ("activations", 1)):
                if name in there:
                    slices[name] = file.get_slice(name)
                if name not in there or len(slices[name].get_shape()) != dimensions:
                    raise IngestError(f"{self.path} has no {name} as Delphi caches them")
            (count,) = slices["activations"].get_shape()
            if slices["locations"].get_shape() != [count, 3]:
                raise IngestError(f"{self.path} has no place (row, token, latent) of each value")
            for start in range(0, count, _AT_ONCE):
                part = slice(start, min(count, start + _AT_ONCE))
                places = _whole(slices["locations"][part], f"{self.path}: locations")
                with np.errstate(over="ignore"):  # what is no finite float32 is refused later
                    values = slices["activations"][part].astype(np.float32)
                outside = (places < 0) | (places >= [rows, width, self.last - self.first + 1])
                for place in places[outside.any(axis=1)][:1].tolist():
                    raise IngestError(
                        f"{self.path} has an activation at row, token and latent {place}, beyond "
                        f"its {rows:,} rows of {width:,} tokens or its range of latents"
                    )
                row, token, latent = places.T
                yield pa.table([row, token, latent + self.first, values], names=_COLUMNS)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "np") as file:
                yield file
        except (SafetensorError, OSError, TypeError) as error:  # of types that numpy has not
            raise IngestError(f"{self.path} cannot be read: {first_line(error)}") from error


def _whole(array: npt.NDArray[Any], what: str) -> npt.NDArray[np.int64]:
    """Whole numbers as int64. Raises `IngestError` for others."""
    if array.dtype.kind not in "iu":
        raise IngestError(f"{what} are {array.dtype}, not whole numbers")
    return array.astype(np.int64)


def read(path: Path, reading: Reading) -> DelphiCache:
    """The cache of one hook point: its folder, or one with a single hook point in it.

    Raises `IngestError`.
    """
    folders = [path] if any(path.glob("*.safetensors")) else []
    folders = folders or sorted({file.parent for file in path.rglob("*_*.safetensors")})
    if len(folders) != 1:
        there = ", ".join(str(f.relative_to(path)) for f in folders) or "none"
        raise IngestError(
            f"give the folder of one hook point of Delphi's cache, below {path}: {there}"
        )
    splits = []
    for file in folders[0].glob("*.safetensors"):
        match = _FILE.fullmatch(file.name)
        if match is None or not file.is_file():
            raise IngestError(f"{file} is no file as Delphi names them, FIRST_LAST")
        splits.append(_Split(file, int(match[1]), int(match[2])))
    splits.sort(key=lambda split: split.first)
    end = 0
    for split in splits:
        if not end <= split.first <= split.last:
            raise IngestError(f"{split.path} has latents that another file has, or none")
        end = split.last + 1
    if end > MOST_FEATURES:
        raise beyond(folders[0], "latent", end - 1, MOST_FEATURES)
    return DelphiCache(folders[0], splits, reading)


class DelphiCache:
    """See `ingest.operations.import_activations.ActivationSource`. Tokens are held in memory."""

    def __init__(self, folder: Path, splits: Sequence[_Split], reading: Reading) -> None:
        self._folder = folder
        self._splits = splits
        self._reading = reading
        data = splits[0].load("tokens", "lengths")
        if "tokens" not in data or data["tokens"].ndim != 2 or not data["tokens"].size:
            raise IngestError(f"{folder} was cached without its tokens: cache it with them")
        self._tokens = _whole(data["tokens"], f"{splits[0].path}: tokens")
        for token in (int(self._tokens.min()), int(self._tokens.max())):
            if not 0 <= token < MOST_TOKENS:
                raise beyond(splits[0].path, "token", token, MOST_TOKENS)
        rows, width = self._tokens.shape
        lengths = _whole(data.get("lengths", np.full(rows, width)), f"{splits[0].path}: lengths")
        if lengths.shape != (rows,) or lengths.min() < 1 or lengths.max() > width:
            raise IngestError(
                f"{splits[0].path}: lengths are not one for each of its {rows:,} rows, from 1 to "
                f"{width:,} tokens"
            )
        self._lengths = lengths.astype(np.int32)
        for split in splits[1:]:
            for name, array in split.load("tokens", "lengths").items():
                if name not in data or not np.array_equal(array, data[name]):
                    raise IngestError(f"{split.path} has other {name} than {splits[0].path}")

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._folder / "config.json"
        try:
            config = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise IngestError(f"{path} is not a JSON object")
        return config

    @cached_property
    def _rows(self) -> duckdb.DuckDBPyConnection:
        """A scratch database with the table `activations`, by sequence."""
        scratch = self._reading.scratch()
        scratch.execute(
            "CREATE TABLE given (sequence BIGINT, token_index BIGINT, feature_id BIGINT, "
            "activation FLOAT)"
        )
        for split in self._splits:
            for rows in split.activations(*self._tokens.shape):
                scratch.register("rows", rows)
                scratch.execute("INSERT INTO given FROM rows")
                scratch.unregister("rows")
        scratch.execute("CREATE TABLE activations AS FROM given ORDER BY sequence")
        scratch.execute("DROP TABLE given")
        return scratch

    @cached_property
    def facts(self) -> SourceFacts:
        return SourceFacts(
            format="delphi",
            source=str(self._folder),
            fingerprint=sha256_of(*(split.path for split in self._splits)),
            name=self._reading.name or self._folder.name,
            hook=self._reading.hook or self._folder.name,
            model=self._reading.model or str(self._config.get("model_name") or ""),
            d_sae=self._reading.features or self._splits[-1].last + 1,
            context_size=int(self._lengths.max()),
            n_tokens=int(self._lengths.sum()),
            n_activations=self._rows.sql("SELECT count(*) FROM activations").fetchall()[0][0],
            metadata=pa.schema([]),
        )

    def vocabulary(self) -> list[str]:
        size = int(self._tokens.max()) + 1
        if self._reading.tokenizer is None:
            return [f"<{i}>" for i in range(size)]
        from ingest.model.load import load_tokenizer
        from ingest.tokens.vocabulary import vocabulary

        texts: list[str] = (
            vocabulary(load_tokenizer(Path(self._reading.tokenizer))).column("text").to_pylist()
        )
        if len(texts) < size:
            raise IngestError(
                f"the tokenizer {self._reading.tokenizer} has {len(texts):,} tokens, and "
                f"{self._folder} has token {size - 1:,}: give the one it was cached with"
            )
        return texts

    def sequences(self) -> Iterator[Sequences]:
        for start in range(0, len(self._lengths), _ROWS):
            lengths = self._lengths[start : start + _ROWS]
            tokens = self._tokens[start : start + _ROWS]
            kept = np.arange(tokens.shape[1]) < lengths[:, None]
            nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * len(lengths), pa.struct([])))
            yield Sequences(tokens[kept].astype(np.uint32), lengths, nothing)

    def activations(self, first: int, end: int) -> ImportedActivations:
        rows = self._rows.sql(
            f"FROM activations WHERE sequence >= {first} AND sequence < {end}"
        ).to_arrow_table()
        return ImportedActivations(*(column.to_numpy() for column in rows.columns))


def _halved(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
    """As float16 where that holds every value, as Delphi's own do."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else values


def write(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`. A folder with the hook point's folder in it."""
    from safetensors.numpy import save_file

    folder = path / file_name(sae.hook or sae.name)
    folder.mkdir(parents=True)
    ids, lists = (
        database.sql("SELECT context_id, token_ids FROM contexts ORDER BY context_id")
        .to_arrow_table()
        .columns
    )
    contexts = ids.to_numpy()
    lists = lists.combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy()).astype(np.int32)
    tokens = np.zeros((len(lengths), int(lengths.max())), np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    files = max(_SPLITS, -(-database.snapshot.rows(sae.name) // _PER_FILE))
    edges = np.linspace(0, sae.d_sae, min(files, sae.d_sae) + 1).astype(int)
    total = 0
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = database.sql(
            "SELECT context_id, token_index, feature_id, activation FROM activations "
            "WHERE sae = ? AND feature_id >= ? AND feature_id < ? ORDER BY 1, 2, 3",
            [sae.name, first, end],
        ).to_arrow_table()
        context, token, feature, value = (column.to_numpy() for column in rows.columns)
        locations = np.stack([np.searchsorted(contexts, context), token, feature - first], axis=1)
        small = not locations.size or locations.max() < 1 << 16
        data = {
            "locations": locations.astype(np.uint16 if small else np.uint32),
            "activations": _halved(value),
            "tokens": tokens,
            "lengths": lengths,
        }
        save_file(data, folder / f"{first}_{end - 1}.safetensors")
        total += len(value)
    config = {"model_name": database.snapshot.model.id, "ctx_len": tokens.shape[1]}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return total
