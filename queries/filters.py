"""Contexts chosen by a SQL condition on their documents."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError
from queries.arguments import check_text
from queries.connection import Reader
from queries.sql import duckdb_errors


def contexts_where(reader: Reader, condition: str) -> npt.NDArray[np.int64]:
    """Ids, int64 [c], of the contexts for which `condition` is true.

    The condition may use every column of ``documents`` and of ``contexts``. Where both have one
    of the same name, ``documents.n_tokens`` says which. Raises `QueryError` for a blank condition,
    `SQLError` with DuckDB's message.
    """
    if not check_text(condition, "where").strip():
        raise QueryError("where is empty: give a SQL condition such as \"topic = 'History'\"")
    # The line break keeps a comment in the condition from swallowing the bracket.
    statement = (
        "SELECT contexts.context_id FROM contexts JOIN documents USING (document_id) "
        f"WHERE ({condition}\n)"
    )
    with duckdb_errors(reader.location):
        answer = reader.cursor().execute(statement).fetchnumpy()
    ids: npt.NDArray[np.int64] = np.asarray(answer["context_id"], np.int64)
    return ids
