"""The macro ``fires_on`` for new text: answered by Python, called from SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
from duckdb import sqltypes

from featuredb.store.store import Store
from queries.answers import Firing

FUNCTION = "featuredb_fires_on"

_ROW = {
    "rank": "INTEGER",
    "sae": "VARCHAR",
    "feature_id": "BIGINT",
    "specificity": "FLOAT",
    "activation": "FLOAT",
    "token_index": "INTEGER",
    "token": "VARCHAR",
    "n_tokens": "INTEGER",
    "activations": "FLOAT[]",
    "density": "DOUBLE",
    "max_activation": "FLOAT",
    "top_tokens": "VARCHAR[]",
    "promoted_tokens": "VARCHAR[]",
}


def register_fires_on(store: Store, answer: Callable[[str, int], Firing]) -> None:
    """Let the store's DuckDB answer ``fires_on(text, k := 20)`` through `answer`.

    Nothing is loaded until a statement calls the macro. The catalog's own macro of that name
    knows stored documents only.
    """
    connection = store.connection()

    def rows(text: str, k: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = answer(text, k).table.to_pylist()
        return found

    shape = ", ".join(f'"{name}" {kind}' for name, kind in _ROW.items())
    connection.create_function(
        FUNCTION,
        rows,
        [sqltypes.VARCHAR, sqltypes.BIGINT],
        duckdb.sqltype(f"STRUCT({shape})[]"),
        side_effects=False,
    )
    connection.execute(
        "CREATE OR REPLACE MACRO fires_on(document_text, k := 20) AS TABLE SELECT found.* "
        f"FROM (SELECT unnest({FUNCTION}(document_text, k)) AS found)"
    )
