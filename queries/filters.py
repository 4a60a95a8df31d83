"""Contexts and tokens chosen by a SQL condition: ``where`` of several questions.

A condition names columns of ``documents``, ``contexts`` and ``tokens``. One that names columns of
``tokens`` (token, token_id, token_index, role) is about each token by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError, SQLError, first_line
from featuredb.store.names import folded
from featuredb.store.snapshot import Snapshot
from queries.arguments import check_text
from queries.connection import Reader
from queries.sql import duckdb_errors

Held = Callable[[npt.NDArray[np.int64], npt.NDArray[np.integer]], npt.NDArray[np.bool_]]

OF_DOCUMENTS = "contexts JOIN documents USING (document_id)"
_OF_TOKENS = f"{OF_DOCUMENTS} JOIN tokens USING (context_id)"
_TOKEN_COLUMNS = frozenset({"token", "token_id", "token_index", "role"})
_NO_COLUMN = re.compile(r'Referenced column "([^"]*)" not found')
_TWO_COLUMNS = re.compile(r'Ambiguous reference to column name "([^"]*)" \(use: (.*?)\)')


def held(reader: Reader, condition: str) -> Held:
    """What tells of tokens, given as context_id int64 [n] and token_index [n] in text order,
    whether `condition` holds at each, bool [n]. Raises as `contexts_where`."""
    if not names_tokens(reader, condition):
        chosen = contexts_where(reader, condition)
        return lambda context_id, _: np.isin(context_id, chosen)

    def each(
        context_id: npt.NDArray[np.int64], token_index: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.bool_]:
        starts = np.flatnonzero(np.diff(context_id, prepend=-1))
        offsets = np.append(starts, len(context_id))
        return tokens_where(reader, condition, context_id[starts], offsets, token_index)

    return each


def names_tokens(reader: Reader, condition: str) -> bool:
    """Whether a condition names columns of ``tokens``. Raises as `contexts_where`."""
    if not check_text(condition, "where").strip():
        raise QueryError("where is empty: give a SQL condition such as \"topic = 'History'\"")
    try:
        _bind(reader, condition, OF_DOCUMENTS)
    except SQLError:
        _bind(reader, condition, _OF_TOKENS)
        return True
    if any(folded(n) in _TOKEN_COLUMNS for c in reader.snapshot.corpora for n in c.metadata):
        # A corpus has a column of such a name: DuckDB says where a condition could mean either.
        _bind(reader, condition, _OF_TOKENS)
    return False


def _bind(reader: Reader, condition: str, source: str) -> None:
    """See whether DuckDB knows every column, without reading any."""
    with _plain_errors(reader):
        reader.cursor().sql(f"SELECT 1 FROM {source} WHERE {_bracketed(condition)}")


def _bracketed(condition: str, name: str = "where") -> str:
    """The condition in brackets, and it alone: what closes them would be run as what follows.

    Nothing but an expression is both a filter and a case. Raises `QueryError` for several
    statements, `SQLError` for what is no SQL. name: as of `ids_where`.
    """
    import duckdb

    inside = f"({condition}\n)"  # the line break keeps a comment from swallowing the bracket
    for whole in (f"SELECT 1 WHERE {inside}", f"SELECT CASE WHEN {inside} THEN 1 END"):
        try:
            statements = len(duckdb.extract_statements(whole))
        except duckdb.Error as error:
            raise SQLError(f"{name} is no SQL condition: {first_line(error)}") from None
        if statements != 1:
            raise QueryError(f"{name} is one condition: it has no room for further statements")
    return inside


def contexts_where(reader: Reader, condition: str) -> npt.NDArray[np.int64]:
    """Ids, int64 [c], of the contexts for which `condition` is true.

    The condition may use every column of ``documents`` and of ``contexts``. Where both have one
    of the same name, ``documents.n_tokens`` says which. Raises `QueryError` for a blank condition,
    `SQLError` where DuckDB refuses it.
    """
    with _plain_errors(reader):
        statement = f"SELECT contexts.context_id FROM {OF_DOCUMENTS} WHERE {_bracketed(condition)}"
        answer = reader.cursor().execute(statement).fetchnumpy()
    ids: npt.NDArray[np.int64] = np.asarray(answer["context_id"], np.int64)
    return ids


def ids_where(
    reader: Reader,
    condition: str,
    source: str,
    column: str,
    tables: Mapping[str, pa.Table],
    name: str,
) -> npt.NDArray[np.int64]:
    """The ids in `column` of the rows of `source` for which `condition` is true, int64 [n].

    tables: those of `source` that are not in the catalog. name: what the condition is of, for the
    messages. Raises as `contexts_where`.
    """
    if not check_text(condition, name).strip():
        raise QueryError(f"{name} is empty: give a SQL condition such as \"topic = 'History'\"")
    cursor = reader.cursor()
    for each, table in tables.items():
        cursor.register(each, table)
    with _plain_errors(reader):
        answer = cursor.execute(
            f"SELECT {column} AS id FROM {source} WHERE {_bracketed(condition, name)}"
        ).fetchnumpy()
    ids: npt.NDArray[np.int64] = np.asarray(answer["id"], np.int64)
    return ids


def tokens_where(
    reader: Reader,
    condition: str,
    context_id: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    token_index: npt.NDArray[np.integer],
) -> npt.NDArray[np.bool_]:
    """At which tokens `condition` is true, bool [n].

    context_id: int64 [c]. offsets: int64 [c + 1]: the tokens of context i are entries offsets[i] to
    offsets[i+1] of token_index [n]. Raises `SQLError`.
    """
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(token_index, pa.int64())
    )
    cursor = reader.cursor()
    cursor.register(
        "featuredb_active",
        pa.table({"context_id": context_id, "first": offsets[:-1], "token_indexes": lists}),
    )
    with _plain_errors(reader):
        statement = (
            f"SELECT tokens.featuredb_place AS place FROM {OF_DOCUMENTS} "
            f"JOIN ({spelled(reader.snapshot, 'featuredb_active', 'first + nth - 1')}) AS tokens "
            f"USING (context_id) WHERE {_bracketed(condition)}"
        )
        places = cursor.execute(statement).fetchnumpy()["place"]
    mask = np.zeros(len(token_index), np.bool_)
    mask[np.asarray(places, np.int64)] = True
    return mask


def spelled(snapshot: Snapshot, active: str, place: str) -> str:
    """SQL of the columns of ``tokens``, and featuredb_place, for the tokens that `active` lists.

    active: rows of context_id and the list token_indexes. place: of its columns and ``nth``, the
    place in the list from 1.
    """
    has_roles = any(corpus.roles is not None for corpus in snapshot.corpora)
    chosen = "list_transform(token_indexes, lambda i: i + 1)"
    role = f"unnest(list_select(c.roles, {chosen}))" if has_roles else "NULL::VARCHAR"
    return f"""
SELECT t.context_id, token_index, token_id, v.text AS token, role, featuredb_place
FROM (
    SELECT context_id, token_index, token_id, role, {place} AS featuredb_place
    FROM (
        SELECT a.*, CAST(unnest(token_indexes) AS INTEGER) AS token_index,
            CAST(unnest(list_select(c.token_ids, {chosen})) AS BIGINT) AS token_id,
            {role} AS role, generate_subscripts(token_indexes, 1) AS nth
        FROM {active} AS a JOIN contexts AS c USING (context_id)
    )
) AS t LEFT JOIN vocabulary AS v USING (token_id)"""


@contextmanager
def _plain_errors(reader: Reader) -> Iterator[None]:
    """What is wrong with a condition, in one line that says what to write."""
    try:
        with duckdb_errors(reader.location):
            yield
    except SQLError as error:
        raise SQLError(_explained(str(error))) from None


def _explained(message: str) -> str:
    if match := _TWO_COLUMNS.search(message):
        names = match[2].replace("'", "").replace('"', "")
        return f"the condition's {match[1]} is a column of several tables: write {names}"
    if match := _NO_COLUMN.search(message):
        return (
            f"there is no column {match[1]} in documents, contexts or tokens: see them with "
            f"`featuredb sql DB documents`. Text wants single quotes: '{match[1]}'"
        )
    return message
