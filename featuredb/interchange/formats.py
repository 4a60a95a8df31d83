"""The formats of activations, by name. One file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featuredb.errors import OptionError, StorageError
from featuredb.interchange import circuit_tracer, delphi, neuronpedia, token_tables
from featuredb.interchange.reading import Reading
from featuredb.store.files.atomic import output_in_place

if TYPE_CHECKING:
    from featuredb.database import Database
    from featuredb.store.snapshot import Sae
    from ingest.operations.import_activations import ActivationSource


@dataclass(frozen=True)
class ActivationFormat:
    """How activations are read and written. Either may be missing.

    read: raises `IngestError`. write: of one SAE, to a path at which nothing is. Returns how many
    activations it wrote.
    """

    read: Callable[[Path, Reading], ActivationSource] | None = None
    write: Callable[[Database, Sae, Path], int] | None = None


FORMATS: Mapping[str, ActivationFormat] = {
    "goodfire": ActivationFormat(token_tables.read_goodfire, token_tables.write_goodfire),
    "delphi": ActivationFormat(delphi.read, delphi.write),
    "neuronpedia": ActivationFormat(neuronpedia.read, neuronpedia.write),
    "circuit-tracer": ActivationFormat(None, circuit_tracer.write),
    "parquet": ActivationFormat(token_tables.read_parquet, token_tables.write_parquet),
    "csv": ActivationFormat(token_tables.read_csv, token_tables.write_csv),
    "arrow": ActivationFormat(token_tables.read_arrow, token_tables.write_arrow),
}
"""By name."""


def opened(path: Path, name: str, reading: Reading) -> ActivationSource:
    """What lies at a path, in the format of that name. Raises `OptionError`, `IngestError`."""
    return _format(name, "read").read(path, reading)  # type: ignore[misc]


def write(database: Database, sae: Sae, path: Path, name: str) -> int:
    """Write the activations of an SAE in place at once. Raises `OptionError`, `StorageError`."""
    writer = _format(name, "write").write
    assert writer is not None
    if path.exists():
        raise StorageError(f"there is something at {path} already: give another path")
    with output_in_place(path) as temporary:
        return writer(database, sae, temporary)


def _format(name: str, act: str) -> ActivationFormat:
    able = {n: f for n, f in FORMATS.items() if getattr(f, act) is not None}
    if name not in able:
        doing = "read from" if act == "read" else "written as"
        raise OptionError(f"activations are not {doing} {name}: choose one of {', '.join(able)}")
    return able[name]
