"""The stored texts: ids without gaps, and the same tokens in every form they are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.corpora import text_hash
from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.snapshot import Corpus, File
from featuredb.verification.remedies import RESTORE
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope


def check_vocabulary(scope: Scope) -> Iterator[Problem]:
    """One row for every token id."""
    file = scope.snapshot.vocabulary
    next_id = 0
    for table in _groups(scope, file, ["token_id"]):
        ids = chunk_to_numpy(table.column("token_id"))
        if not _counts_up(ids, next_id):
            yield Problem(file.path, "has token ids with gaps", RESTORE)
            return
        next_id += len(ids)
    if next_id != scope.snapshot.model.vocab_size:
        yield Problem(file.path, "has not one row for each token of the model", RESTORE)


def check_corpus(scope: Scope, corpus: Corpus) -> Iterator[Problem]:
    """Documents, contexts and arrays of one corpus."""
    root = scope.layout.root
    dtype = np.dtype(schemas.token_id_dtype(scope.snapshot.model.vocab_size))
    for file, width in ((corpus.tokens, dtype.itemsize), (corpus.roles, 1)):
        if file is not None and file.bytes != file.rows * width:
            yield Problem(file.path, f"is not {file.rows:,} tokens long", RESTORE)
            return
    index = np.load(root / corpus.index.path, mmap_mode="r")
    if index.shape != (corpus.n_contexts + 1, 2) or index[-1].tolist() != [-1, corpus.tokens.rows]:
        yield Problem(corpus.index.path, "does not match tokens.bin", RESTORE)
        return
    tokens = _mapped(root / corpus.tokens.path, dtype, corpus.tokens)
    roles = None
    if corpus.roles is not None:
        roles = _mapped(root / corpus.roles.path, np.dtype(np.uint8), corpus.roles)
    yield from _contexts(scope, corpus, index, tokens, roles)
    yield from _documents(scope, corpus, index)


def _contexts(
    scope: Scope,
    corpus: Corpus,
    index: npt.NDArray[np.int64],
    tokens: npt.NDArray[Any],
    roles: npt.NDArray[np.uint8] | None,
) -> Iterator[Problem]:
    """contexts.parquet against the arrays that say the same."""
    path = corpus.contexts.path
    columns = ["context_id", "document_id", "context_index", "token_start", "n_tokens", "token_ids"]
    columns += ["roles"] if roles is not None else []
    row = 0
    last = (-1, -1)
    for table in _groups(scope, corpus.contexts, columns):
        ids, documents, order, starts, lengths = (
            chunk_to_numpy(table.column(name)).astype(np.int64) for name in columns[:5]
        )
        n = len(ids)
        if not _counts_up(ids, corpus.first_context + row):
            yield Problem(path, "has context ids with gaps", RESTORE)
            return
        mine = index[row : row + n + 1]
        if (
            not ((mine[:-1, 0] == documents) & (mine[:-1, 1] == starts)).all()
            or not (np.diff(mine[:, 1]) == lengths).all()
        ):
            yield Problem(path, "and index.npy disagree", RESTORE)
            return
        before = np.concatenate(([last[0]], documents[:-1]))
        number = np.concatenate(([last[1]], order[:-1]))
        if (
            not np.where(documents == before, order == number + 1, order == 0).all()
            or not (documents >= before).all()
        ):
            yield Problem(path, "has contexts out of their documents' order", RESTORE)
            return
        low, high = int(mine[0, 1]), int(mine[-1, 1])
        if not np.array_equal(_flat(table, "token_ids"), tokens[low:high]):
            yield Problem(path, "and tokens.bin disagree", RESTORE)
            return
        if roles is not None and not _same_roles(table, roles[low:high], corpus.role_names):
            yield Problem(path, "and roles.bin disagree", RESTORE)
            return
        last = (int(documents[-1]), int(order[-1])) if n else last
        row += n


def _documents(scope: Scope, corpus: Corpus, index: npt.NDArray[np.int64]) -> Iterator[Problem]:
    """documents.parquet: ids, how many contexts each has, how many tokens all have."""
    path = corpus.documents.path
    row = n_tokens = 0
    documents = index[:-1, 0]
    columns = ["document_id", "n_tokens", "n_contexts"]
    hashes, file = [], corpus.text_hashes
    for table in _groups(scope, corpus.documents, columns + ["text"] * (file is not None)):
        ids, counts, contexts = (chunk_to_numpy(table.column(c)).astype(np.int64) for c in columns)
        first = corpus.first_document + row
        if not _counts_up(ids, first):
            yield Problem(path, "has document ids with gaps", RESTORE)
            return
        edges = np.searchsorted(documents, np.arange(first, first + len(ids) + 1))
        if not (np.diff(edges) == contexts).all():
            yield Problem(path, "and index.npy disagree on the contexts of a document", RESTORE)
            return
        n_tokens += int(counts.sum())
        if file is not None:
            texts = enumerate(table.column("text").to_pylist(), row)
            pairs = [(text_hash(text), number) for number, text in texts if text is not None]
            hashes.append(np.array(pairs, np.uint64).reshape(-1, 2))
        row += len(ids)
    if n_tokens != corpus.n_tokens:
        what = f"has {n_tokens:,} tokens, should have {corpus.n_tokens:,}"
        yield Problem(path, what, RESTORE)
    if file is not None:
        listed = np.concatenate(hashes)
        listed = listed[np.lexsort((listed[:, 1], listed[:, 0]))]
        if not np.array_equal(np.load(scope.layout.root / file.path, mmap_mode="r"), listed):
            yield Problem(file.path, "has not the hashes of the documents' texts", RESTORE)


def _groups(scope: Scope, file: File, columns: list[str]) -> Iterator[pa.Table]:
    groups = scope.files.metadata(file.path).num_row_groups
    for group in range(groups):
        yield scope.files.read(file.path, [group], columns)
    scope.bar.advance(file.bytes)


def _counts_up(ids: npt.NDArray[Any], first: int) -> bool:
    return bool((ids == np.arange(first, first + len(ids))).all())


def _flat(table: pa.Table, name: str) -> npt.NDArray[Any]:
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    flat: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return flat


def _same_roles(table: pa.Table, codes: npt.NDArray[np.uint8], names: tuple[str, ...]) -> bool:
    if len(codes) and int(codes.max()) >= len(names):
        return False
    known = np.array(names, object)
    return bool((known[codes] == _flat(table, "roles")).all())


def _mapped(path: Any, dtype: np.dtype[Any], file: File) -> npt.NDArray[Any]:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if file.rows else np.empty(0, dtype)
