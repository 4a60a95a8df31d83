"""Open a corpus and stream its documents in batches."""

from __future__ import annotations

import hashlib
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import CorpusError
from featuredb.render.progress import log
from featuredb.store.files.scratch import ScratchFolder
from ingest.corpus import schema as typing_rules
from ingest.corpus.arrays import STRING, settled
from ingest.corpus.containers import parts_of_object
from ingest.corpus.hub import PREFIX, hub_part
from ingest.corpus.locate import file_part, looks_like_path, parts_of
from ingest.corpus.part import BATCH_BYTES, CHATS, CorpusPart, DocumentColumn, PartRows, Scan
from ingest.corpus.records import TEXT
from ingest.corpus.spool import spool_stream

RESERVED_NAMES = (
    "document_id",
    "text",
    "source",
    "source_offset",
    "n_tokens",
    "n_contexts",
    "role",
    "corpus",
    "corpus_id",
)
_SHOWN_COLUMNS = 12
_DOCUMENT_TYPES = {
    "text": STRING,
    "tokens": typing_rules.TOKENS,
    "messages": typing_rules.MESSAGES,
}
_MEANT = {
    "text": "text",
    "tokens": "a list of integers",
    "messages": "a list of {role, content}",
}


class CorpusReader:
    """A stream of documents in a fixed order. Create it with `open_corpus`.

    Reading it twice gives the same batches unless its files change. `skipped_null` is the number
    of rows that the last read skipped because their document was null.
    """

    def __init__(
        self,
        source: str,
        parts: Sequence[CorpusPart],
        column: DocumentColumn,
        *,
        id_column: str | None = None,
        max_documents: int | None = None,
    ) -> None:
        self.source = source
        self.column = column
        self.max_documents = max_documents
        self.skipped_null = 0
        self._stored: Callable[[Sequence[str | None]], Any] | None = None
        self._parts = list(parts)
        self._scans = self._scanned()
        self._check_documents()
        metadata = (_without(scan.schema, column.name) for scan in self._scans)
        widened = typing_rules.widen_schemas(metadata)
        self._names = list(widened.names)
        free = typing_rules.free_names(self._names, {*RESERVED_NAMES, column.role})
        types = [settled(field.type) for field in widened]
        self.metadata_schema = pa.schema(list(zip(free, types, strict=True)))
        if id_column is not None and id_column not in self._names:
            raise CorpusError(
                f"{source} has no column {id_column!r} for ids; it has {_listed(self._names)}"
            )
        self.id_column = free[self._names.index(id_column)] if id_column is not None else None

    @property
    def schema(self) -> Any:
        """Schema of every batch: the document, ``source``, ``source_offset``, metadata."""
        role = self.column.role
        fields = [
            pa.field(role, _DOCUMENT_TYPES[role]),
            pa.field("source", pa.string()),
            pa.field("source_offset", pa.int64()),
        ]
        return pa.schema([*fields, *self.metadata_schema])

    def leave_out(self, stored: Callable[[Sequence[str | None]], Any]) -> None:
        """Leave out documents of whose texts `stored` is true. It gives one boolean per text."""
        self._stored = stored

    def keep_as(self, name: str, data_type: Any) -> None:
        """Read a metadata column in another type: text, or one that `store.corpora.common` gave.

        A value that does not fit is refused when it is read.
        """
        number = self.metadata_schema.get_field_index(name)
        self.metadata_schema = self.metadata_schema.set(number, pa.field(name, data_type))

    @property
    def rows(self) -> int | None:
        """Number of rows including nulls, at most `max_documents`. None if unknown."""
        known = [scan.rows for scan in self._scans]
        total = None if None in known else sum(count or 0 for count in known)
        if self.max_documents is None or total is None:
            return total
        return min(total, self.max_documents)

    def batches(self, batch_rows: int = 1024) -> Iterator[Any]:
        """Iterate over record batches of `schema`, in order of part and row.

        Each has `batch_rows` rows, or fewer where long documents would make it larger than
        32 MiB. The last one has the remainder. The batches depend only on the content.

        Raises:
            CorpusError: a part cannot be read, or has changed since the corpus was opened.
        """
        self.skipped_null = 0
        yield from _rebatched(self._documents(), batch_rows)
        if self.skipped_null:
            log.info(
                f"{self.skipped_null} rows of {self.source} were left out because their "
                f"{self.column.name!r} is null"
            )

    def fingerprint(self) -> str:
        """Hex SHA-256 over the content of the parts in order.

        Names, times and columns are not included, nor are parts beyond `max_documents`.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        whole = hashlib.sha256()
        for part in self._parts:
            whole.update(part.digest())
        return whole.hexdigest()

    def describe(self) -> str:
        """Describe the corpus in one line: parts, rows, bytes and columns."""
        kinds = Counter(part.kind for part in self._parts)
        pieces = [f"{count} {kind}" for kind, count in kinds.most_common()]
        rows = "rows unknown" if self.rows is None else f"{self.rows:,} rows"
        size = sum(part.size() for part in self._parts)
        columns = [f"{field.name} {field.type}" for field in self.metadata_schema]
        return (
            f"{self.source}: {', '.join(pieces)}; {rows}, {size:,} bytes; "
            f"{self.column.role} from {self.column.name!r}; metadata: "
            + (_listed(columns) if columns else "none")
        )

    def __repr__(self) -> str:
        return f"<CorpusReader {self.describe()}>"

    def _scanned(self) -> list[Scan]:
        """Scan the parts needed for `max_documents` and drop the others."""
        scans: list[Scan] = []
        left = self.max_documents
        for part in self._parts:
            if left is not None and left <= 0:
                break
            scan = part.scan(left)
            scans.append(scan)
            if left is not None:
                left -= scan.documents or 0
        self._parts = self._parts[: len(scans)]
        return scans

    def _check_documents(self) -> None:
        """Check that every part has the document column with the right type."""
        name, role = self.column.name, self.column.role
        has_rows = False
        for part, scan in zip(self._parts, self._scans, strict=True):
            if scan.rows == 0:
                continue
            has_rows = True
            if name not in scan.schema.names:
                raise CorpusError(
                    f"{part.name} has no column {name!r}; it has {_listed(scan.schema.names)}; "
                    f"say which holds the {role} (--{role}-column)"
                    + (", or name the files to read by a glob" if len(self._parts) > 1 else "")
                )
            data_type = scan.schema.field(name).type
            if not (pa.types.is_null(data_type) or _fits(data_type, role)):
                raise CorpusError(
                    f"column {name!r} of {part.name} is {data_type}, not {_MEANT[role]}; "
                    f"its columns are {_listed(scan.schema.names)}"
                )
        if not has_rows or self._is_one_empty_file():
            raise CorpusError(f"{self.source} is empty; there is nothing to ingest")
        if all(scan.documents == 0 for scan in self._scans):
            raise CorpusError(f"every {name!r} of {self.source} is null; name another column")

    def _is_one_empty_file(self) -> bool:
        """Whether the corpus is one empty text file. In a folder such a file is a document."""
        return (
            len(self._parts) == 1
            and self._parts[0].kind == TEXT.kind
            and self._parts[0].size() == 0
        )

    def _documents(self) -> Iterator[Any]:
        """Yield the parts' batches as `schema`, without nulls, up to `max_documents`."""
        fields = [*zip(self._names, self.metadata_schema.types, strict=True)]
        name, role = self.column.name, self.column.role
        chats = CHATS if role == "messages" else None
        document = pa.field(name, _DOCUMENT_TYPES[role], metadata=chats)
        schema = pa.schema([document, *fields])
        left = self.max_documents
        for part in self._parts:
            for rows in part.rows(schema):
                batch = self._document_batch(part.name, rows)
                if left is not None:
                    batch = batch.slice(0, left)
                    left -= batch.num_rows
                full = left == 0
                if self._stored is not None:
                    batch = batch.filter(pa.array(~self._stored(batch.column(0).to_pylist())))
                if batch.num_rows:
                    yield batch
                if full:
                    return

    def _document_batch(self, name: str, rows: PartRows) -> Any:
        offsets, batch = rows
        count = len(offsets)
        if self.column.name not in batch.schema.names:
            raise CorpusError(f"{name} has lost its column {self.column.name!r} while being read")
        columns = [batch.column(self.column.name), pa.repeat(name, count), offsets]
        for field_name, data_type in zip(self._names, self.metadata_schema.types, strict=True):
            has = field_name in batch.schema.names
            columns.append(batch.column(field_name) if has else pa.nulls(count, data_type))
        whole = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        nulls = columns[0].null_count
        if nulls:
            self.skipped_null += nulls
            whole = whole.filter(columns[0].is_valid())
        return whole


def open_corpus(
    source: str | Path | Iterable[Any],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    tokens_column: str | None = None,
    messages_column: str | None = None,
    max_documents: int | None = None,
) -> CorpusReader:
    """Open a corpus in any supported format.

    `source` is one of:

    - a file: Parquet, Arrow IPC, JSON Lines, JSON (an array of objects), CSV, TSV, or text (one
      document), each also in gzip, Zstandard, xz, bzip2 or lz4;
    - a folder (recursively), a glob, or a list of paths; files in order of their paths, lists in
      the order given;
    - ``-`` for standard input: any of these formats, detected by content;
    - ``hf:owner/dataset[:config][@split]``;
    - a frame of pandas or polars, an Arrow table, array or stream, anything that exports one, or a
      mapping from column names to values; a mapping from splits to any of these (`DatasetDict`);
    - an iterable of strings or of mappings from column names to values. A list of strings that are
      all paths of files is a list of paths.

    `tokens_column` names lists of token ids, `messages_column` chats; each takes the place of
    `text_column`. Row-based files are read once here to infer types, which also validates
    them. The corpus is the first `max_documents` documents that are not null.

    Raises:
        CorpusError: nothing there, nothing in it, no such column, not text, not readable.
        MissingExtraError: a data set of the hub without the `hub` extra.
        ValueError: options that exclude each other.
    """
    column = _column(text_column, tokens_column, messages_column)
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents has to be at least 1, not {max_documents}")
    spool = ScratchFolder("featuredb-corpus-")
    try:
        name, parts = _parts(source, column, spool)
        corpus = CorpusReader(
            name,
            parts,
            column,
            id_column=id_column,
            max_documents=max_documents,
        )
    except BaseException:
        spool.remove()
        raise
    weakref.finalize(corpus, spool.remove)
    return corpus


def _parts(
    source: Any, column: DocumentColumn, spool: ScratchFolder
) -> tuple[str, list[CorpusPart]]:
    """Return the name and parts of `source`. `spool` holds what must be kept on disk."""
    if isinstance(source, str | os.PathLike):
        name = str(os.fspath(source))
        if name == "-":
            path = spool_stream(sys.stdin.buffer, spool.folder)
            if not path.stat().st_size:
                raise CorpusError("standard input is empty; there is nothing to ingest")
            return name, [file_part(path, "stdin", column)]
        if name.startswith(PREFIX):
            return name, [hub_part(name)]
        return name, parts_of(name, column)
    if isinstance(source, list | tuple) and _are_paths(source):
        parts = [part for item in source for part in _parts(item, column, spool)[1]]
        return ", ".join(os.fspath(item) for item in source), parts
    parts = parts_of_object(source, column, spool)
    return "Arrow table" if isinstance(source, pa.Table) else "Python", parts


def _are_paths(items: Sequence[Any]) -> bool:
    if any(isinstance(item, os.PathLike) for item in items):
        return True
    return bool(items) and all(
        isinstance(item, str) and (item.startswith(PREFIX) or looks_like_path(item))
        for item in items
    )


def _column(text: str, tokens: str | None, messages: str | None) -> DocumentColumn:
    if tokens is not None and messages is not None:
        raise ValueError("give tokens_column or messages_column, not both")
    if tokens is not None:
        return DocumentColumn(tokens, "tokens")
    return (
        DocumentColumn(text, "text") if messages is None else DocumentColumn(messages, "messages")
    )


def _fits(data_type: Any, role: str) -> bool:
    data_type = settled(data_type)
    if role == "text":
        return bool(pa.types.is_string(data_type))
    if not pa.types.is_list(data_type):
        return False
    inner = data_type.value_type
    if role == "tokens":
        return bool(pa.types.is_integer(inner) or pa.types.is_null(inner))
    if pa.types.is_struct(inner):
        return all(inner.get_field_index(key) >= 0 for key in ("role", "content"))
    return bool(pa.types.is_string(inner) or pa.types.is_null(inner))


def _without(schema: Any, name: str) -> Any:
    return pa.schema([field for field in schema if field.name != name])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:_SHOWN_COLUMNS]) or "none"
    return shown + (", …" if len(names) > _SHOWN_COLUMNS else "")


def _rebatched(batches: Iterable[Any], batch_rows: int) -> Iterator[Any]:
    """Regroup rows into batches of `batch_rows`, or fewer for `BATCH_BYTES`."""
    held: list[Any] = []
    rows = size = 0
    for batch in batches:
        for piece in _pieces(batch, batch_rows):
            while piece.num_rows:
                if held and size + piece.nbytes > BATCH_BYTES:
                    yield pa.concat_batches(held)
                    held, rows, size = [], 0, 0
                head = piece.slice(0, batch_rows - rows)
                piece = piece.slice(head.num_rows)
                held.append(head)
                rows += head.num_rows
                size += head.nbytes
                if rows == batch_rows:
                    yield pa.concat_batches(held)
                    held, rows, size = [], 0, 0
    if held:
        yield pa.concat_batches(held)


def _pieces(batch: Any, batch_rows: int) -> Iterator[Any]:
    """Halve a batch until each piece fits `BATCH_BYTES` and `batch_rows`, or is one row."""
    if batch.num_rows > 1 and (batch.nbytes > BATCH_BYTES or batch.num_rows > batch_rows):
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half), batch_rows)
        yield from _pieces(batch.slice(half), batch_rows)
    else:
        yield batch
