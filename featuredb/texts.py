"""The stored corpora: which document a context belongs to, its tokens, and how they read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb import schemas
from featuredb.errors import UnknownContextError
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Corpus, Draft, Snapshot

_CACHED_DOCUMENTS = 1_000_000
"""Up to this many documents their metadata is read once and kept; beyond it, read on demand."""

DOCUMENT_ROW_GROUP = 1_024


class Where(NamedTuple):
    """A context's place: its corpus and its row there."""

    corpus: Corpus
    row: int


class Texts:
    """Contexts, tokens and documents of one snapshot."""

    def __init__(self, root: Path, snapshot: Snapshot | Draft, files: ParquetFiles) -> None:
        self._root = root
        self._snapshot = snapshot
        self._files = files
        self._indexes: dict[str, npt.NDArray[np.int64]] = {}
        self._tokens: dict[str, npt.NDArray[np.unsignedinteger]] = {}
        self._documents: dict[str, pa.Table] = {}

    @cached_property
    def token_texts(self) -> list[str]:
        """How each token id reads on its own, by id."""
        table = self._files.read(self._snapshot.vocabulary.path, columns=["text"])
        texts: list[str] = table.column("text").to_pylist()
        return texts

    @cached_property
    def metadata_names(self) -> list[str]:
        """Document columns that answers carry: ``source``, then the corpora's own, in order."""
        names = ["source"]
        for corpus in self._snapshot.corpora:
            names += [n for n in corpus.metadata if n not in names]
        return names

    def locate(self, context_id: int) -> Where:
        """Raises `UnknownContextError` with the valid range."""
        for corpus in self._snapshot.corpora:
            row = context_id - corpus.first_context
            if 0 <= row < corpus.n_contexts:
                return Where(corpus, row)
        last = max((c.first_context + c.n_contexts for c in self._snapshot.corpora), default=0) - 1
        raise UnknownContextError(
            f"there is no context {context_id}: this database has contexts 0 to {last}"
        )

    def index(self, corpus: Corpus) -> npt.NDArray[np.int64]:
        """int64 [n_contexts + 1, 2]: (document_id, first token in tokens.bin); last row closes."""
        found = self._indexes.get(corpus.id)
        if found is None:
            found = np.load(self._root / corpus.index.path, mmap_mode="r")
            self._indexes[corpus.id] = found
        return found

    def tokens(self, corpus: Corpus) -> npt.NDArray[np.unsignedinteger]:
        """All token ids of a corpus, context after context, memory-mapped."""
        found = self._tokens.get(corpus.id)
        if found is None:
            dtype = schemas.token_id_dtype(self._snapshot.model.vocab_size)
            path = self._root / corpus.tokens.path
            empty = path.stat().st_size == 0
            found = np.empty(0, dtype) if empty else np.memmap(path, dtype=dtype, mode="r")
            self._tokens[corpus.id] = found
        return found

    def document_of(self, context_id: int) -> int:
        corpus, row = self.locate(context_id)
        return int(self.index(corpus)[row, 0])

    def token_ids(self, context_id: int) -> npt.NDArray[np.unsignedinteger]:
        """Token ids of a context, BOS included."""
        corpus, row = self.locate(context_id)
        start, stop = self.index(corpus)[row : row + 2, 1]
        return self.tokens(corpus)[start:stop]

    def read(self, ids: Sequence[int] | npt.NDArray[np.unsignedinteger]) -> list[str]:
        """Each token id as text."""
        texts = self.token_texts
        return [texts[i] for i in ids]

    def documents(self, document_ids: Sequence[int]) -> pa.Table:
        """Rows of `metadata_names` for these documents, in the order asked for."""
        pieces: list[pa.Table] = []
        for document_id in document_ids:
            corpus = self._corpus_of_document(document_id)
            pieces.append(self._document(corpus, document_id - corpus.first_document))
        if not pieces:
            return pa.table({name: pa.array([], pa.string()) for name in self.metadata_names})
        joined = pa.concat_tables(pieces, promote_options="permissive")
        missing = [n for n in self.metadata_names if n not in joined.column_names]
        for name in missing:
            joined = joined.append_column(name, pa.nulls(len(joined), pa.string()))
        return joined.select(self.metadata_names).combine_chunks()

    def _corpus_of_document(self, document_id: int) -> Corpus:
        for corpus in self._snapshot.corpora:
            if 0 <= document_id - corpus.first_document < corpus.n_documents:
                return corpus
        raise KeyError(document_id)

    def _document(self, corpus: Corpus, row: int) -> pa.Table:
        columns = ["source", *corpus.metadata]
        if corpus.n_documents <= _CACHED_DOCUMENTS:
            table = self._documents.get(corpus.id)
            if table is None:
                table = self._files.read(corpus.documents.path, columns=columns).combine_chunks()
                self._documents[corpus.id] = table
            return table.slice(row, 1)
        group, offset = divmod(row, DOCUMENT_ROW_GROUP)
        return self._files.read(corpus.documents.path, [group], columns).slice(offset, 1)
