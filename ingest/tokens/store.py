"""Write a tokenized corpus into the store, before the model runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import CorpusError
from featuredb.render.progress import log
from featuredb.store import schemas
from featuredb.store.corpora import DOCUMENT_ROW_GROUP, text_hash
from featuredb.store.files.atomic import folder_in_place, remove_tree
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Corpus, File
from ingest.tokens.bos import Bos
from ingest.tokens.contexts import TokenizedBatch

CONTEXT_ROW_GROUP = 512
"""A SQL answer fetches a few dozen contexts from anywhere: small groups keep that cheap."""

MAX_CONTEXT_SIZE = 1 << 16


class CorpusHeader(NamedTuple):
    """Facts about a corpus known before it is read."""

    id: str
    source: str
    fingerprint: str
    context_size: int
    stride: int | None
    bos: Bos
    metadata: pa.Schema
    first_document: int
    first_context: int
    vocab_size: int
    chats: bool = False
    """Documents are chats: every token has a role."""
    name: str | None = None


def store_corpus(
    layout: Layout,
    header: CorpusHeader,
    batches: Iterable[tuple[pa.RecordBatch, TokenizedBatch]],
    max_tokens: int | None = None,
) -> Corpus:
    """Write ``corpus/<id>/`` in place in one step, holding one batch at a time.

    Stops after the document that reaches `max_tokens` tokens (BOS not counted). Raises
    `CorpusError` when no document has a token.
    """
    final = layout.corpus(header.id)
    remove_tree(final)
    with folder_in_place(final) as folder:
        writer = _Writer(folder, header)
        try:
            for documents, tokenized in batches:
                if writer.add(documents, tokenized, max_tokens):
                    break
        finally:
            writer.close()
        if writer.n_contexts == 0:
            raise CorpusError(
                f"{header.source} has no text to ingest: all of its {writer.n_documents} "
                "documents are empty"
            )

        if 2 * writer.n_overlong > writer.n_documents:
            log.warning(
                f"{writer.n_overlong:,} of {writer.n_documents:,} documents of {header.source} "
                f"have {header.context_size} tokens, and contexts of {header.context_size} begin "
                "with BOS: the last token of each is a context of its own, unless a larger "
                "--context-size keeps them whole"
            )

        def entry(name: str, rows: int) -> File:
            return file_entry(layout, folder / name, folder, final, rows)

        return Corpus(
            id=header.id,
            source=header.source,
            fingerprint=header.fingerprint,
            context_size=header.context_size,
            stride=header.stride,
            bos_token_id=header.bos.token,
            bos_from=header.bos.decided_by,
            first_document=header.first_document,
            n_documents=writer.n_documents,
            first_context=header.first_context,
            n_contexts=writer.n_contexts,
            n_tokens=writer.n_tokens,
            metadata=tuple(header.metadata.names),
            documents=entry("documents.parquet", writer.n_documents),
            contexts=entry("contexts.parquet", writer.n_contexts),
            tokens=entry("tokens.bin", writer.n_stored),
            index=entry("index.npy", writer.n_contexts + 1),
            roles=entry("roles.bin", writer.n_stored) if header.chats else None,
            role_names=writer.role_names,
            text_hashes=entry("text_hashes.npy", writer.n_texts) if writer.n_texts else None,
            name=header.name,
        )


def taken(tokenized: TokenizedBatch, before: int, max_tokens: int | None) -> tuple[int, int, bool]:
    """How many of a batch's documents and contexts are ingested when `before` tokens were already,
    and whether that reaches `max_tokens`."""
    n, full = len(tokenized.n_tokens), False
    if max_tokens is not None:
        over = np.flatnonzero(before + np.cumsum(tokenized.n_tokens) >= max_tokens)
        if len(over):
            n, full = int(over[0]) + 1, True
    return n, int(np.searchsorted(tokenized.context_document, n, side="left")), full


class _Writer:
    """Writes the files of a corpus batch by batch."""

    def __init__(self, folder: Path, header: CorpusHeader) -> None:
        self._header = header
        self._folder = folder
        self._dtype = schemas.token_id_dtype(header.vocab_size)
        self._document_schema = pa.schema([*schemas.DOCUMENT_FIELDS, *header.metadata])
        self._context_schema = schemas.contexts(header.vocab_size, roles=header.chats)
        self._documents = pq.ParquetWriter(
            folder / "documents.parquet", self._document_schema, compression="zstd"
        )
        self._contexts = pq.ParquetWriter(
            folder / "contexts.parquet", self._context_schema, compression="zstd"
        )
        self._tokens = open(folder / "tokens.bin", "wb")  # noqa: SIM115 closed by close()
        self._roles = _Roles(folder / "roles.bin") if header.chats else None
        self._index: list[npt.NDArray[np.int64]] = []
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._pending: list[pa.Table] = []
        self.n_texts = 0
        self.n_documents = self.n_contexts = self.n_tokens = self.n_stored = 0
        self.n_overlong = 0
        """Documents that a context would hold but for its BOS."""

    @property
    def role_names(self) -> tuple[str, ...]:
        return () if self._roles is None else tuple(self._roles.names)

    def add(
        self, documents: pa.RecordBatch, tokenized: TokenizedBatch, max_tokens: int | None
    ) -> bool:
        """Add a batch. Returns whether `max_tokens` has been reached."""
        n, kept, full = taken(tokenized, self.n_tokens, max_tokens)
        self._add_contexts(tokenized, kept)
        self._add_documents(documents.slice(0, n), tokenized, n, kept)
        return full

    def close(self) -> None:
        self._flush(len(self._pending) and sum(map(len, self._pending)))
        self._documents.close()
        self._contexts.close()
        self._tokens.close()
        if self._roles is not None:
            self._roles.close()
        closing = np.array([[-1, self.n_stored]], np.int64)
        np.save(self._folder / "index.npy", np.concatenate([*self._index, closing]))
        if self.n_texts:
            hashes = np.concatenate(self._hashes)
            order = np.lexsort((hashes[:, 1], hashes[:, 0]))
            np.save(self._folder / "text_hashes.npy", hashes[order])

    def _add_contexts(self, tokenized: TokenizedBatch, kept: int) -> None:
        lengths = tokenized.context_lengths[:kept].astype(np.int64)
        stored = int(lengths.sum())
        ids = tokenized.token_ids[:stored].astype(self._dtype)
        starts = self.n_stored + np.cumsum(lengths) - lengths
        first_document = self._header.first_document + self.n_documents
        document = tokenized.context_document[:kept] + first_document
        first_context = self._header.first_context + self.n_contexts
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        roles = []
        if self._roles is not None:
            names = self._roles.add(tokenized, stored)
            roles = [pa.ListArray.from_arrays(pa.array(offsets), names)]
        table = pa.table(
            [
                pa.array(np.arange(first_context, first_context + kept), pa.int64()),
                pa.array(document, pa.int64()),
                pa.array(tokenized.context_index[:kept], pa.int32()),
                pa.array(starts, pa.int64()),
                pa.array(lengths.astype(np.int32)),
                pa.array(tokenized.char_start[:kept], pa.int64()),
                pa.array(tokenized.char_end[:kept], pa.int64()),
                pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
                *roles,
            ],
            schema=self._context_schema,
        )
        self._contexts.write_table(table, row_group_size=CONTEXT_ROW_GROUP)
        self._tokens.write(ids.data)
        self._index.append(np.stack([document, starts], axis=1).astype(np.int64))
        self.n_contexts += kept
        self.n_stored += stored

    def _add_documents(
        self, documents: pa.RecordBatch, tokenized: TokenizedBatch, n: int, kept: int
    ) -> None:
        first = self._header.first_document + self.n_documents
        contexts = np.bincount(tokenized.context_document[:kept], minlength=n)
        n_tokens = tokenized.n_tokens[:n]
        names = documents.schema.names
        if tokenized.texts is not None:
            text = pa.array(tokenized.texts[:n], pa.string())
        else:
            text = documents.column("text") if "text" in names else pa.nulls(n, pa.string())
        self._add_hashes(text)
        columns = [
            pa.array(np.arange(first, first + n), pa.int64()),
            documents.column("source"),
            documents.column("source_offset"),
            pa.array(n_tokens, pa.int64()),
            pa.array(contexts.astype(np.int32)),
            text,
            *(documents.column(name) for name in self._header.metadata.names),
        ]
        cast = [
            c.cast(f.type) if c.type != f.type else c
            for c, f in zip(columns, self._document_schema, strict=True)
        ]
        self._pending.append(pa.table(cast, schema=self._document_schema))
        self.n_documents += n
        self.n_tokens += int(n_tokens.sum())
        if self._header.bos.token is not None:
            self.n_overlong += int((n_tokens == self._header.context_size).sum())
        waiting = sum(map(len, self._pending))
        self._flush(waiting - waiting % DOCUMENT_ROW_GROUP)

    def _add_hashes(self, texts: pa.Array) -> None:
        rows = [
            (text_hash(text), row)
            for row, text in enumerate(texts.to_pylist(), self.n_documents)
            if text is not None
        ]
        self._hashes.append(np.array(rows, np.uint64).reshape(-1, 2))
        self.n_texts += len(rows)

    def _flush(self, rows: int) -> None:
        """Write whole row groups only, so that a document's row group follows from its id."""
        if not rows:
            return
        waiting = pa.concat_tables(self._pending)
        self._documents.write_table(waiting.slice(0, rows), row_group_size=DOCUMENT_ROW_GROUP)
        self._pending = [waiting.slice(rows)] if rows < len(waiting) else []


class _Roles:
    """``roles.bin``: a role for every token; `names` grows as batches bring new ones."""

    def __init__(self, path: Path) -> None:
        self.names: list[str] = []
        self._file = open(path, "wb")  # noqa: SIM115 closed by close()

    def add(self, tokenized: TokenizedBatch, stored: int) -> pa.Array:
        """Write the first `stored` tokens' roles, and give them as strings."""
        if tokenized.roles is None:
            raise CorpusError("a batch of chats came without the roles of its tokens")
        self.names += [name for name in tokenized.role_names if name not in self.names]
        if len(self.names) > 256:
            raise CorpusError(
                f"the chats have {len(self.names)} roles; at most 256 can be told apart"
            )
        # Each batch numbers its roles for itself.
        codes = np.array([self.names.index(name) for name in tokenized.role_names], np.uint8)
        roles = codes[tokenized.roles[:stored]]
        self._file.write(roles.data)
        return pa.DictionaryArray.from_arrays(pa.array(roles), self.names).cast(pa.string())

    def close(self) -> None:
        self._file.close()
