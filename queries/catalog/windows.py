"""Contexts as answers show them: the tokens around a peak, and the document."""

from __future__ import annotations

from featuredb.store.snapshot import Snapshot
from queries.catalog.documents import metadata


def windows(best: str, snapshot: Snapshot) -> str:
    """The contexts of `best` with the tokens around their peaks and their documents, by rank.

    best: a SELECT of sae, feature_id, rank, context_id, activation, token_index, and the lists
    token_indexes and activations of the feature's active tokens in the context. The parameter
    ``size`` of the macro is how many tokens are shown on each side.
    """
    return f"""
WITH best AS ({best}
),
placed AS (
    SELECT b.*, c.document_id, c.token_ids, greatest(b.token_index - size, 0) AS first,
        least(b.token_index + size + 1, c.n_tokens) AS stop
    FROM best AS b JOIN contexts AS c USING (context_id)
),
spelled AS (
    SELECT w.rank, list(v.text ORDER BY w.at) AS tokens
    FROM (
        SELECT rank, unnest(token_ids[first + 1:stop]) AS token_id,
            generate_subscripts(token_ids[first + 1:stop], 1) AS at
        FROM placed
    ) AS w JOIN vocabulary AS v USING (token_id)
    GROUP BY w.rank
)
SELECT p.sae, p.feature_id, p.rank, p.context_id, p.document_id, p.activation, p.token_index,
    s.tokens[p.token_index - p.first + 1] AS token,
    CAST(p.first AS INTEGER) AS window_start, s.tokens,
    [coalesce(p.activations[list_position(p.token_indexes, CAST(i AS INTEGER))], 0)
        FOR i IN range(p.first, p.stop)] AS activations{metadata(snapshot, "d")}
FROM placed AS p JOIN spelled AS s USING (rank) JOIN documents AS d USING (document_id)
ORDER BY p.rank"""
