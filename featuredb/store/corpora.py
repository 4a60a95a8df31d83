"""The stored corpora: documents, contexts, tokens and their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError, UnknownContextError
from featuredb.store import schemas
from featuredb.store.files.arrays import fetch_rows
from featuredb.store.files.location import Root, location_of
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.names import NO_CONTEXT, context_spans, document_columns, folded
from featuredb.store.snapshot import Corpus, Draft, Snapshot

_CACHED_DOCUMENTS = 1_000_000
"""Up to this many documents, their metadata is cached. Beyond it, it is read on demand."""

_SCANNED = 16 << 20
"""Bytes of tokens behind a URL that one question may read."""

DOCUMENT_ROW_GROUP = 1_024


def text_hash(text: str) -> int:
    """Lookup key of a document's text: 64 bits of BLAKE2b of its UTF-8.

    ``text_hashes.npy`` has, sorted, a row (hash, row of the document in the corpus) for every
    document that has a text, as uint64.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Where(NamedTuple):
    """A context's location: its corpus and its row in it."""

    corpus: Corpus
    row: int


class DocumentText(NamedTuple):
    """text: None where the corpus has token ids only. Per context the first character, negative
    where it is not known, and, for chats, the role of each token, BOS included."""

    text: str | None
    starts: list[int]
    roles: list[list[str]] | None


class Texts:
    """Contexts, tokens and documents of one snapshot."""

    def __init__(self, root: Root, snapshot: Snapshot | Draft, files: ParquetFiles) -> None:
        self._location = location_of(root)
        self._snapshot = snapshot
        self._files = files
        self._indexes: dict[str, npt.NDArray[np.int64]] = {}
        self._tokens: dict[str, npt.NDArray[np.unsignedinteger]] = {}
        self._documents: dict[str, pa.Table] = {}
        self._hashes: dict[str, npt.NDArray[np.uint64]] = {}

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token id."""
        texts: list[str] = self._vocabulary.column("text").to_pylist()
        return texts

    @cached_property
    def special(self) -> frozenset[str]:
        """The texts of special tokens: what a template or the tokenizer adds, such as BOS."""
        flags = self._vocabulary.column("special").to_numpy()
        return frozenset(self.token_texts[i] for i in np.flatnonzero(flags))

    @property
    def scannable(self) -> bool:
        """Whether a question may read all tokens: not of a large corpus behind a URL."""
        size = sum(corpus.tokens.bytes for corpus in self._snapshot.corpora)
        return self._location.folder is not None or size <= _SCANNED

    def ids_of(self, text: str) -> list[int]:
        """The token ids that have this text, ascending. Some tokenizers have several."""
        return self._ids.get(text, [])

    @cached_property
    def _vocabulary(self) -> pa.Table:
        return self._files.read(self._snapshot.vocabulary.path, columns=["text", "special"])

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for i, text in enumerate(self.token_texts):
            ids.setdefault(text, []).append(i)
        return ids

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each token id contributes to a text."""
        table = self._files.read(self._snapshot.vocabulary.path, columns=["bytes"])
        spelled: list[bytes] = table.column("bytes").to_pylist()
        return spelled

    @cached_property
    def metadata_names(self) -> list[str]:
        """Document columns of answers."""
        return document_columns(self._snapshot)

    def locate(self, context_id: int) -> Where:
        """Locate a context. Raises `UnknownContextError` with the valid range."""
        for corpus in self._snapshot.corpora:
            row = context_id - corpus.first_context
            if 0 <= row < corpus.n_contexts:
                return Where(corpus, row)
        raise UnknownContextError(
            NO_CONTEXT.format(context=context_id, spans=context_spans(self._snapshot))
        )

    def index(self, corpus: Corpus) -> npt.NDArray[np.int64]:
        """int64 [n_contexts + 1, 2]: (document_id, first token in tokens.bin). Last row: end."""
        index = self._indexes.get(corpus.id)
        if index is None:
            index = self._location.array(corpus.index.path)
            self._indexes[corpus.id] = index
        return index

    def tokens(self, corpus: Corpus) -> npt.NDArray[np.unsignedinteger]:
        """All token ids of a corpus, context after context, memory-mapped."""
        ids = self._tokens.get(corpus.id)
        if ids is None:
            dtype = schemas.token_id_dtype(self._snapshot.model.vocab_size)
            ids = self._location.flat(corpus.tokens.path, dtype)
            self._tokens[corpus.id] = ids
        return ids

    def fetch(self, context_ids: Sequence[int]) -> None:
        """Prefetch the tokens and documents of contexts of a remote database.

        Does nothing for a local database. Raises `UnknownContextError`.
        """
        if self._location.folder is not None:
            return
        rows: dict[str, tuple[Corpus, list[int]]] = {}
        for context_id in context_ids:
            corpus, row = self.locate(context_id)
            rows.setdefault(corpus.id, (corpus, []))[1].append(row)
        for corpus, chosen in rows.values():
            index = self.index(corpus)
            fetch_rows(index, [(row, row + 2) for row in chosen])
            places = [index[row : row + 2] for row in chosen]
            fetch_rows(self.tokens(corpus), [(int(p[0, 1]), int(p[1, 1])) for p in places])
            if not self._keeps_documents(corpus):
                documents = [int(p[0, 0]) - corpus.first_document for p in places]
                groups = [row // DOCUMENT_ROW_GROUP for row in documents]
                self._files.fetch(corpus.documents.path, groups, ["source", *corpus.metadata])

    def document_of(self, context_id: int) -> int:
        corpus, row = self.locate(context_id)
        return int(self.index(corpus)[row, 0])

    def document_contexts(self, document_id: int) -> Iterator[tuple[int, int, int]]:
        """(context_id, tokens to skip, shift) of each context of a document, in order.

        Skipped tokens are BOS and those that an earlier window covers. A token's index in the
        document, without BOS, is its index in the context plus the shift.
        """
        corpus = self._corpus_of_document(document_id)
        index = self.index(corpus)
        rows = np.searchsorted(index[:-1, 0], [document_id, document_id + 1])
        bos = int(corpus.bos_token_id is not None)
        covered = 0
        for row in range(int(rows[0]), int(rows[1])):
            n_tokens = int(index[row + 1, 1] - index[row, 1]) - bos
            number = row - int(rows[0])
            start = covered if corpus.stride is None else number * corpus.stride
            yield corpus.first_context + row, bos + covered - start, start - bos
            covered = start + n_tokens

    def documents_of(self, context_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The document of each context, int64 [n]."""
        documents = np.empty_like(context_ids)
        for corpus in self._snapshot.corpora:
            row = context_ids - corpus.first_context
            here = (row >= 0) & (row < corpus.n_contexts)
            if here.any():
                documents[here] = self.index(corpus)[:, 0][row[here]]
        return documents

    def contexts_of(
        self, document_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first and the last context of each document, int64 [n]."""
        first, last = np.empty_like(document_ids), np.empty_like(document_ids)
        for corpus in self._snapshot.corpora:
            row = document_ids - corpus.first_document
            here = (row >= 0) & (row < corpus.n_documents)
            if here.any():
                owners = np.asarray(self.index(corpus)[:-1, 0])
                wanted = document_ids[here]
                first[here] = np.searchsorted(owners, wanted) + corpus.first_context
                last[here] = np.searchsorted(owners, wanted, "right") - 1 + corpus.first_context
        return first, last

    def document_text(self, document_id: int) -> DocumentText:
        """A document's text, and what its contexts say of their characters and roles."""
        corpus = self._corpus_of_document(document_id)
        row = document_id - corpus.first_document
        texts = self._files.rows(corpus.documents.path, row, row + 1, ["text"])
        rows = np.searchsorted(self.index(corpus)[:-1, 0], [document_id, document_id + 1])
        columns = ["char_start", *(["roles"] if corpus.roles is not None else [])]
        contexts = self._files.rows(corpus.contexts.path, int(rows[0]), int(rows[1]), columns)
        roles = contexts.column("roles").to_pylist() if corpus.roles is not None else None
        starts = contexts.column("char_start").to_pylist()
        return DocumentText(texts.column("text")[0].as_py(), starts, roles)

    def tokens_at(
        self, context_ids: npt.NDArray[np.int64], token_indexes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.unsignedinteger]:
        """The token id at each place, [n]."""
        ids = np.empty(len(context_ids), schemas.token_id_dtype(self._snapshot.model.vocab_size))
        for corpus in self._snapshot.corpora:
            row = context_ids - corpus.first_context
            here = (row >= 0) & (row < corpus.n_contexts)
            if here.any():
                starts = self.index(corpus)[:, 1][row[here]]
                ids[here] = self.tokens(corpus)[starts + token_indexes[here]]
        return ids

    def with_text(self, corpus: Corpus, text: str) -> int | None:
        """The first document of a corpus with exactly this text, looked up by its hash.

        None if there is none. The corpus must have text_hashes.
        """
        assert corpus.text_hashes is not None
        hashes = self._hashes.get(corpus.id)
        if hashes is None:
            hashes = self._hashes[corpus.id] = self._location.array(corpus.text_hashes.path)
        for row in _rows_of(hashes, text_hash(text)):
            group, offset = divmod(row, DOCUMENT_ROW_GROUP)
            texts = self._files.read(corpus.documents.path, [group], ["text"]).column("text")
            if texts[offset].as_py() == text:
                return corpus.first_document + row
        return None

    def token_ids(self, context_id: int) -> npt.NDArray[np.unsignedinteger]:
        """Token ids of a context, BOS included."""
        corpus, row = self.locate(context_id)
        start, stop = self.index(corpus)[row : row + 2, 1]
        return self.tokens(corpus)[start:stop]

    def read(self, ids: Sequence[int] | npt.NDArray[np.unsignedinteger]) -> list[str]:
        """Each token id as text."""
        texts = self.token_texts
        # As Python numbers: an array in a file gives them one by one, at a microsecond each.
        return [texts[i] for i in np.asarray(ids).tolist()]

    @cached_property
    def metadata_schema(self) -> pa.Schema:
        """`metadata_names` with their types. Text if the corpora's types have no common type."""
        types: dict[str, pa.DataType] = {}
        for corpus in self._snapshot.corpora:
            schema = self._files.metadata(corpus.documents.path).schema.to_arrow_schema()
            for name in ("source", *corpus.metadata):
                types[folded(name)] = common(types.get(folded(name)), schema.field(name).type)
        return pa.schema(
            [(name, types.get(folded(name), pa.string())) for name in self.metadata_names]
        )

    def documents(self, document_ids: Sequence[int]) -> pa.Table:
        """Rows of `metadata_schema` for these documents, in the given order.

        A column that a document's corpus does not have is null there.
        """
        pieces: list[pa.Table] = []
        for document_id in document_ids:
            corpus = self._corpus_of_document(document_id)
            pieces.append(self._document(corpus, document_id - corpus.first_document))
        if not pieces:
            return self.metadata_schema.empty_table()
        joined = pa.concat_tables(pieces, promote_options="default")
        return joined.combine_chunks()

    def _corpus_of_document(self, document_id: int) -> Corpus:
        for corpus in self._snapshot.corpora:
            if 0 <= document_id - corpus.first_document < corpus.n_documents:
                return corpus
        raise KeyError(document_id)

    def _document(self, corpus: Corpus, row: int) -> pa.Table:
        columns = ["source", *corpus.metadata]
        if self._keeps_documents(corpus):
            table = self._documents.get(corpus.id)
            if table is None:
                table = self._conform(self._files.read(corpus.documents.path, columns=columns))
                self._documents[corpus.id] = table
            return table.slice(row, 1)
        group, offset = divmod(row, DOCUMENT_ROW_GROUP)
        read = self._files.read(corpus.documents.path, [group], columns)
        return self._conform(read.slice(offset, 1))

    def _keeps_documents(self, corpus: Corpus) -> bool:
        """Whether to cache the metadata of all documents."""
        path, rows = corpus.documents.path, corpus.n_documents
        return self._location.is_small(path, rows, _CACHED_DOCUMENTS)

    def _conform(self, table: pa.Table) -> pa.Table:
        """One corpus's columns in `metadata_schema`."""
        present = {folded(name): table.column(name) for name in table.column_names}
        columns = [
            _cast(present[folded(field.name)], field)
            if folded(field.name) in present
            else pa.nulls(len(table), field.type)
            for field in self.metadata_schema
        ]
        return pa.table(columns, schema=self.metadata_schema).combine_chunks()


def _rows_of(hashes: npt.NDArray[np.uint64], wanted: int) -> list[int]:
    """The rows listed for a hash, ascending, from a sorted array uint64 [n, 2].

    Hashes are uniform, so a hash's position is known within a few square roots of n. A remote
    lookup takes one request, where binary search would take one per step.
    """
    n = len(hashes)
    middle, reach = wanted * n >> 64, 4 * isqrt(n) + 16
    while True:
        low, high = max(0, middle - reach), min(n, middle + reach)
        near = np.asarray(hashes[low:high])
        first, last = int(near[0, 0]), int(near[-1, 0])
        if (low == 0 or first < wanted) and (high == n or last > wanted):
            rows: list[int] = near[near[:, 0] == np.uint64(wanted), 1].tolist()
            return rows
        reach *= 4


def unite(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether a column may have these types in two corpora of a database.

    It may if Python and DuckDB unify them to the same type: equal types, numbers and booleans,
    timestamps of whole microseconds, text with integers or booleans, and lists and structs of
    these. A struct may lack fields of the other, but no two fields may differ in case alone. What
    integers a float column rounds is for the caller to ask (`rounds`).
    """
    if one == other:
        return True
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        mine, others = ({field.name: field.type for field in each} for each in (one, other))
        return len({folded(name) for name in mine | others}) == len(mine | others) and all(
            unite(mine[name], others[name]) for name in mine.keys() & others.keys()
        )
    if pa.types.is_list(one) and pa.types.is_list(other):
        return unite(one.value_type, other.value_type)
    if _is_number(one) and _is_number(other):
        return True
    types = pa.types
    if types.is_timestamp(one) and types.is_timestamp(other):
        return (one.tz, other.tz) == (None, None) and "ns" not in (one.unit, other.unit)
    return any(
        types.is_string(text) and (types.is_integer(plain) or types.is_boolean(plain))
        for text, plain in ((one, other), (other, one))
    )


def common(one: pa.DataType | None, other: pa.DataType) -> pa.DataType:
    """The common type, as DuckDB's UNION chooses it: text if no other type fits."""
    if one is None or one == other:
        return other
    types = pa.types
    if types.is_list(one) and types.is_list(other):
        return pa.list_(common(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other):
        members: dict[str, pa.DataType] = {}
        for field in (*one, *other):
            members[field.name] = common(members.get(field.name), field.type)
        return pa.struct(list(members.items()))
    for narrow, wide in ((one, other), (other, one)):
        if types.is_boolean(narrow) and _is_number(wide):
            return wide
        if types.is_integer(narrow) and types.is_floating(wide):
            return wide
        if types.is_uint64(narrow) and types.is_signed_integer(wide):
            return pa.decimal128(38, 0)
    try:
        fields = [pa.schema([("", one)]), pa.schema([("", other)])]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return pa.string()


def rounds(data_type: pa.DataType, wider: pa.DataType) -> int | None:
    """The integer beyond which `wider`, a common type, rounds those of `data_type`.

    None if it rounds none, because it has no float where `data_type` has an integer.
    """
    types = pa.types
    if types.is_integer(data_type) and types.is_floating(wider):
        return 1 << 53 if types.is_float64(wider) else 1 << 24
    bounds = []
    if types.is_list(data_type) and types.is_list(wider):
        bounds.append(rounds(data_type.value_type, wider.value_type))
    if types.is_struct(data_type) and types.is_struct(wider):
        bounds += [rounds(field.type, wider.field(field.name).type) for field in data_type]
    return min((bound for bound in bounds if bound is not None), default=None)


def _cast(column: pa.ChunkedArray, to: pa.Field) -> pa.ChunkedArray:
    """Cast a column to a type of `common`, rounding if that is floating.

    Types accepted by `unite` always cast. Older versions admitted others. Raises `QueryError`.
    """
    if column.type == to.type:
        return column  # a cast would import pyarrow.compute
    try:
        return column.cast(to.type, safe=not pa.types.is_floating(to.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        if not pa.types.is_string(to.type):
            raise QueryError(
                f"the documents' column {to.name!r} is {column.type} in one corpus and cannot be "
                f"made {to.type}, which holds it in others: drop one of these corpora"
            ) from error
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([texts], pa.string())


def _is_number(data_type: pa.DataType) -> bool:
    """Whether a type is numeric or boolean."""
    types = pa.types
    return bool(
        types.is_integer(data_type) or types.is_floating(data_type) or types.is_boolean(data_type)
    )
