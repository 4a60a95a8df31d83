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
from featuredb.store.names import as_file_name
from featuredb.store.snapshot import Sae
from ingest.operations.import_activations import ImportedActivations, Sequences, SourceFacts

_SPLITS = 5
"""Files per hook point, as Delphi's own default."""

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

    def activations(self) -> Iterator[pa.Table]:
        """Rows of (sequence, token_index, feature_id, activation), some millions at a time."""
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
                places = slices["locations"][part].astype(np.int64)
                values = slices["activations"][part].astype(np.float32)
                row, token, latent = places.T
                yield pa.table([row, token, latent + self.first, values], names=_COLUMNS)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "np") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise IngestError(f"{self.path} cannot be read: {first_line(error)}") from error


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
        if match is None:
            raise IngestError(f"{file} is not named as Delphi names its files, FIRST_LAST")
        splits.append(_Split(file, int(match[1]), int(match[2])))
    return DelphiCache(folders[0], sorted(splits, key=lambda s: s.first), reading)


class DelphiCache:
    """See `ingest.operations.import_activations.ActivationSource`. Tokens are held in memory."""

    def __init__(self, folder: Path, splits: Sequence[_Split], reading: Reading) -> None:
        self._folder = folder
        self._splits = splits
        self._reading = reading
        # Every file has the tokens.
        data = splits[0].load("tokens", "lengths")
        if "tokens" not in data or data["tokens"].ndim != 2 or not data["tokens"].size:
            raise IngestError(f"{folder} was cached without its tokens: cache it with them")
        self._tokens = data["tokens"].astype(np.int64)
        rows, width = self._tokens.shape
        self._lengths = data.get("lengths", np.full(rows, width)).astype(np.int32)

    @cached_property
    def _config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self._folder / "config.json").read_text())
        except (OSError, ValueError):
            return {}
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
            for rows in split.activations():
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
            model=self._reading.model or str(self._config.get("model_name", "")),
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

    folder = path / as_file_name(sae.hook or sae.name)
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
    edges = np.linspace(0, sae.d_sae, min(_SPLITS, sae.d_sae) + 1).astype(int)
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
