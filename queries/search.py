"""Features found by the tokens they fire on and promote."""

from __future__ import annotations

from featuredb.store.store import Store
from queries.answers import SearchHits
from queries.arguments import check_k, check_text
from queries.sql import duckdb_errors


def search(store: Store, query: str, k: int = 20) -> SearchHits:
    """The k features whose tokens match any word of `query`, best first.

    A token matches a word when the two are equal once spaces around them and case are ignored.
    The score is defined in `queries.catalog.searching`; ties by SAE in the snapshot's order,
    then feature id. No rows where nothing matches or the query is blank. Raises `QueryError`.
    """
    k = check_k(k)
    check_text(query, "a search")
    with duckdb_errors(store.root):
        table = store.cursor().sql("FROM search(?, k := ?)", params=[query, k]).to_arrow_table()
    return SearchHits(table, query=query)
