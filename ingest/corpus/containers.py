"""Corpora that are Python objects: frames, tables, columns, splits and iterables."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from featuredb.errors import CorpusError, first_line
from featuredb.store.files.scratch import ScratchFolder
from ingest.corpus.locate import file_part
from ingest.corpus.part import BATCH_ROWS, CorpusPart, DocumentColumn
from ingest.corpus.spool import spool_documents
from ingest.corpus.tables import ArrowPart, TablePart

_NAME = "Python"
_NO_DOCUMENTS = (str, bytes, bytearray, memoryview, set, frozenset, io.IOBase)
"""Iterables whose elements are no documents, or come in no order."""

_SCHEMAS = ("schema", "columns", "features")
"""Attributes of which tables, frames and data sets have one, and columns have none."""


def parts_of_object(
    source: Any, column: DocumentColumn, spool: ScratchFolder, name: str = _NAME
) -> list[CorpusPart]:
    """The parts of a corpus that is no path: one, or one for each split of a mapping of splits.

    `spool` holds what can be read only once.

    Raises:
        CorpusError: the object is of no kind that holds documents, or cannot be converted.
    """
    if _is_splits(source):
        return [
            part
            for split, rows in source.items()
            for part in parts_of_object(rows, column, spool, str(split))
        ]
    try:
        rows = _tabular(source, column.name)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise CorpusError(
            f"a {_kind(source)} cannot be read as a table: {first_line(error)}; "
            f"give dictionaries, one a row"
        ) from error
    if isinstance(rows, pa.Table):
        is_named = isinstance(source, pa.Table) and name == _NAME
        return [TablePart("Arrow table" if is_named else name, rows)]
    path = _new_path(spool.folder, name)
    if isinstance(rows, pa.RecordBatchReader):
        return [ArrowPart(name, _spool_batches(rows, path.with_suffix(".arrows")))]
    if isinstance(rows, _NO_DOCUMENTS) or not isinstance(rows, Iterable):
        raise CorpusError(
            f"a corpus cannot be a {_kind(source)}; give a path, a table, or an iterable of "
            f"strings or dictionaries"
        )
    path = spool_documents(rows, path.with_suffix(".jsonl"), column.name)
    return [file_part(path, name, column)]


def _tabular(source: Any, column: str) -> Any:
    """An Arrow table or stream where the object has columns, else rows or documents."""
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if polars is not None and isinstance(source, polars.LazyFrame):
        source = source.collect()
    if pandas is not None and isinstance(source, pandas.Series):
        source = source.to_frame(column).reset_index(drop=True)
    if isinstance(source, Mapping):
        source = _of_columns(source, pandas)
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _of_frame(source, pandas)
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if isinstance(source, pa.Array | pa.ChunkedArray):
        return pa.table({column: source})
    if isinstance(source, pa.dataset.Dataset):
        return source.scanner(batch_size=BATCH_ROWS).to_reader()
    if isinstance(source, pa.dataset.Scanner):
        return source.to_reader()
    if isinstance(source, pa.Table | pa.RecordBatchReader):
        return source
    if polars is not None and isinstance(source, polars.Series):
        return pa.table({column: pa.chunked_array(source)})
    if polars is not None and isinstance(source, polars.DataFrame):
        return _of_polars(source, polars)
    if hasattr(source, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(source)
    return source


def _is_splits(source: Any) -> bool:
    """Whether an object maps names of splits to tables or data sets, and not columns to values."""
    if not isinstance(source, Mapping) or not source:
        return False
    return all(
        isinstance(value, Mapping) or any(hasattr(value, name) for name in _SCHEMAS)
        for value in source.values()
    )


def _of_columns(columns: Mapping[str, Any], pandas: Any) -> Any:
    """Rows of a dictionary of columns.

    Raises:
        ValueError: a value is no column, or columns differ in length.
    """
    for name, values in columns.items():
        if isinstance(values, _NO_DOCUMENTS) or not hasattr(values, "__len__"):
            raise ValueError(f"{name!r} is a {_kind(values)} and not a list of values")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its columns differ in length: {lengths}")
    if pandas is not None and any(isinstance(v, pandas.Series) for v in columns.values()):
        return pandas.DataFrame({n: pandas.Series(list(v)) for n, v in columns.items()})
    listed = [_listed(values) for values in columns.values()]
    return (dict(zip(columns, row, strict=True)) for row in zip(*listed, strict=True))


def _listed(values: Any) -> Any:
    for method in ("to_pylist", "to_list"):
        if hasattr(values, method):
            return getattr(values, method)()
    return values


def _of_polars(frame: Any, polars: Any) -> Any:
    """A polars frame as a stream, or as rows where Arrow has no type for a column."""
    if polars.Object not in frame.dtypes:
        with suppress(pa.ArrowInvalid):
            return pa.RecordBatchReader.from_stream(frame)
    return frame.iter_rows(named=True)


def _of_frame(frame: Any, pandas: Any) -> Any:
    """A pandas frame as a table, or as rows where a column has values of several types."""
    named = any(name is not None for name in frame.index.names)
    frame = frame.reset_index() if named else frame
    kinds = frame.dtypes.items()
    periods = [name for name, kind in kinds if isinstance(kind, pandas.PeriodDtype)]
    frame = frame.astype(dict.fromkeys(periods, "string"))
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _frame_rows(frame, pandas)


def _frame_rows(frame: Any, pandas: Any) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    for values in frame.itertuples(index=False, name=None):
        yield {
            name: None if pandas.api.types.is_scalar(value) and pandas.isna(value) else value
            for name, value in zip(names, values, strict=True)
        }


def _spool_batches(batches: Any, path: Path) -> Path:
    """Write a stream of record batches to a file, in pieces of `BATCH_ROWS` rows."""
    with pa.ipc.new_stream(str(path), batches.schema) as stream:
        for batch in batches:
            for first in range(0, batch.num_rows, BATCH_ROWS):
                stream.write_batch(batch.slice(first, BATCH_ROWS))
    return path


def _kind(value: Any) -> str:
    return type(value).__name__


def _new_path(folder: Path, name: str) -> Path:
    """A path in `folder` that shows a name in errors, and is nobody else's."""
    taken = len(list(folder.iterdir()))
    return folder / f"{re.sub('[^A-Za-z0-9]', '_', name)[:40]}-{taken}"
