"""The file formats that labels are read from and written to. One file each."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featuredb.errors import LabelError, StorageError
from featuredb.labels import delphi, goodfire, neuronpedia, openai, tables
from featuredb.labels.batch import LabelBatch, check_name
from featuredb.labels.files import is_gzip
from featuredb.store.files.atomic import output_in_place
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.names import sae_named
from featuredb.store.snapshot import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LabelFormat:
    """How labels are read from a file or folder, and written to one.

    read: from the path and the database's snapshot. Raises `LabelError`. write: rows of
    `queries.labels.Labels`, of the snapshot, to a path at which nothing is. Either may be missing.
    endings: of file names that are of this format unless another is named.
    """

    read: Callable[[Path, Snapshot], LabelBatch] | None = None
    write: Callable[[pa.Table, Snapshot, Path], None] | None = None
    endings: tuple[str, ...] = ()


FORMATS: Mapping[str, LabelFormat] = {
    "csv": LabelFormat(tables.read_csv, tables.write_csv, (".csv", ".tsv")),
    "json": LabelFormat(tables.read_json, tables.write_json, (".json",)),
    "jsonl": LabelFormat(tables.read_json, tables.write_jsonl, (".jsonl", ".ndjson")),
    "parquet": LabelFormat(tables.read_parquet, tables.write_parquet, (".parquet",)),
    "arrow": LabelFormat(tables.read_arrow, tables.write_arrow, (".arrow", ".feather")),
    "neuronpedia": LabelFormat(neuronpedia.read, neuronpedia.write),
    "delphi": LabelFormat(delphi.read, delphi.write),
    "goodfire": LabelFormat(goodfire.read, goodfire.write),
    "openai": LabelFormat(openai.read),
}
"""By name."""


def label_format(name: str | None, path: Path, writing: bool = False) -> LabelFormat:
    """The format of that name, else by the end of the path. Raises `LabelError`."""
    able = {k: v for k, v in FORMATS.items() if (v.write if writing else v.read)}
    if name is None:
        ending = path.name.lower().removesuffix(".gz")
        for each in able.values():
            if ending.endswith(each.endings):
                return each
        option = "--to" if writing else "--from"
        raise LabelError(
            f"no format is known by the ending of {path}: say which with {option}, as one of "
            + ", ".join(able)
        )
    if name not in able:
        doing = "written" if writing else "read"
        raise LabelError(f"labels are not {doing} as {name}: choose one of {', '.join(able)}")
    return able[name]


def read_labels(
    folder: Path, path: Path, name: str | None, sae: str | None, method: str | None
) -> LabelBatch:
    """See `featuredb.import_labels`. folder: the database's."""
    if method is not None:
        check_name(method, "the method")
    read = label_format(name, path).read
    assert read is not None
    batch = read(path, read_snapshot(Layout(folder)))
    return replace(batch, sae=sae or batch.sae, method=method or batch.method)


def write_labels(
    labels: pa.Table, snapshot: Snapshot, path: Path, name: str | None, sae: str | None
) -> int:
    """See `featuredb.export_labels`."""
    form = label_format(name, path, writing=True)
    assert form.write is not None
    if sae is not None:
        import pyarrow.compute as pc

        labels = labels.filter(pc.equal(labels.column("sae"), sae_named(snapshot, sae).name))
    if os.path.isfile(path) or os.path.isdir(path):
        raise StorageError(f"{path} is there already: choose another name, or remove it")
    with output_in_place(path) as part:
        form.write(labels, snapshot, part)
        if form.endings and is_gzip(path):
            part.write_bytes(gzip.compress(part.read_bytes(), mtime=0))
    return len(labels)
