"""The top contexts of every feature with the tokens around their peaks, stored for SQL.

With only the activations an answer has to look up every context in the corpus and decode its
tokens. In SQL the cost of that grows with the corpus, so it is done once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.corpora import Texts
from featuredb.store.snapshot import Corpus
from ingest.tokens.contexts import ranges

ROWS_PER_FILE = 1 << 15
"""DuckDB inspects every row group of a file, about 8 microseconds each, so a file has few."""

_ROW_GROUP = 2_048

_ROWS_AT_ONCE = 2 * _ROW_GROUP
"""Rows decoded and written at a time, about 2.7 kB each."""

_Ints = npt.NDArray[np.int64]


class Part(NamedTuple):
    """The windows of features first_feature <= id < end_feature, `rows` of them.

    tables: rows of `schemas.windows` in float32, to be read once.
    """

    first_feature: int
    end_feature: int
    first_row: int
    rows: int
    tables: Iterator[pa.Table]


def windows(
    texts: Texts, corpora: Sequence[Corpus], examples: pa.Table, d_sae: int
) -> Iterator[Part]:
    """The windows of all features, in parts that each become a file.

    corpora: those that `texts` is of. examples: rows of `schemas.examples`.
    """
    top = examples.filter(pc.equal(examples.column("kind"), 0))
    words = pa.array(texts.token_texts, pa.string())
    counts = np.bincount(top.column("feature_id").to_numpy(), minlength=d_sae)
    before = np.concatenate(([0], np.cumsum(counts)))
    first = 0
    while first < d_sae:
        most = int(before[first]) + ROWS_PER_FILE
        end = max(first + 1, int(np.searchsorted(before, most, side="right")) - 1)
        start, stop = int(before[first]), int(before[end])
        pieces = (
            top.slice(low, min(_ROWS_AT_ONCE, stop - low)).combine_chunks()
            for low in range(start, stop, _ROWS_AT_ONCE)
        )
        tables = (_windows(texts, corpora, words, piece) for piece in pieces)
        yield Part(first, end, start, stop - start, tables)
        first = end


def write_windows(tables: Iterable[pa.Table], path: Path, values: str) -> None:
    """Write one file of `schemas.windows`.

    Only searched columns have statistics, since DuckDB reads all of them. Data pages of version 1:
    those of version 2 leave the lengths of the lists uncompressed, 7 % of the file.
    """
    schema = schemas.windows(values)
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=9,
        use_dictionary=["tokens.list.element"],
        column_encoding={
            name: "DELTA_BINARY_PACKED" for name in ("context_id", "document_id", "token_index")
        },
        write_statistics=["feature_id"],
        data_page_version="1.0",
    ) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=_ROW_GROUP)


def _windows(texts: Texts, corpora: Sequence[Corpus], words: pa.Array, top: pa.Table) -> pa.Table:
    """Rows of `schemas.windows` from rows of `schemas.examples` of kind 0, in one chunk."""
    context = top.column("context_id").to_numpy()
    peak = top.column("token_index").to_numpy().astype(np.int64)
    first = np.maximum(peak - schemas.WINDOW, 0)
    places = context, first, peak + schemas.WINDOW + 1
    document, ids, lengths = _tokens(texts, corpora, *places)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    indexes, values = (_flat(top, name) for name in ("token_indexes", "activations"))
    row = np.repeat(np.arange(len(context)), indexes[1])
    place = indexes[0].astype(np.int64) - first[row]
    inside = (place >= 0) & (place < lengths[row])
    activations = np.zeros(len(ids), np.float32)
    activations[offsets[row[inside]] + place[inside]] = values[0][inside]
    starts = pa.array(offsets, pa.int32())
    return pa.table(
        [
            top.column("feature_id"),
            top.column("rank"),
            top.column("context_id"),
            pa.array(document),
            pa.array(peak.astype(np.int32)),
            pa.ListArray.from_arrays(starts, words.take(pa.array(ids))),
            pa.ListArray.from_arrays(starts, pa.array(activations)),
        ],
        schema=schemas.windows("float32"),
    )


def _tokens(
    texts: Texts, corpora: Sequence[Corpus], context: _Ints, first: _Ints, stop: _Ints
) -> tuple[_Ints, _Ints, _Ints]:
    """(document of each context, token ids first <= index < stop one context after the other, how
    many of each: fewer where the context ends before)."""
    document, lengths = np.empty(len(context), np.int64), np.empty(len(context), np.int64)
    owned = []
    for corpus in corpora:
        row = context - corpus.first_context
        mine = (row >= 0) & (row < corpus.n_contexts)
        index = texts.index(corpus)
        document[mine] = index[row[mine], 0]
        begins = index[row[mine], 1]
        ends = np.minimum(begins + stop[mine], index[row[mine] + 1, 1])
        begins = begins + first[mine]
        lengths[mine] = ends - begins
        owned.append((mine, begins, texts.tokens(corpus)))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.empty(int(offsets[-1]), np.int64)
    for mine, begins, tokens in owned:
        at, count = offsets[:-1][mine], lengths[mine]
        within = ranges(np.zeros(len(count), np.int64), count)
        ids[np.repeat(at, count) + within] = tokens[np.repeat(begins, count) + within]
    return document, ids, lengths


def _flat(table: pa.Table, name: str) -> tuple[npt.NDArray[np.floating], _Ints]:
    """The elements of a column of lists, one list after the other, and the length of each."""
    column = table.column(name)
    flat = column.chunk(0).flatten() if column.num_chunks else pa.array([], column.type.value_type)
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    return flat.to_numpy(), lengths
