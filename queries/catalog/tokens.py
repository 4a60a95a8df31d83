"""The view `tokens`: every token of every context, with its role where the corpus is of chats."""

from __future__ import annotations

from featuredb.store.snapshot import Snapshot
from queries.catalog.literals import file


def tokens_view(snapshot: Snapshot) -> str:
    """DDL of ``tokens(context_id, token_index, token_id, token, role)``.

    role is NULL in corpora that are no chats. Needs the table `vocabulary`.
    """
    branches = []
    for corpus in snapshot.corpora:
        role = "unnest(roles)" if corpus.roles is not None else "NULL::VARCHAR"
        branches.append(
            "SELECT context_id, unnest(range(len(token_ids)))::INTEGER AS token_index, "
            f"unnest(token_ids)::BIGINT AS token_id, {role} AS role "
            f"FROM {file(corpus.contexts.path)}"
        )
    each = "\nUNION ALL\n".join(branches)
    return (
        "CREATE VIEW tokens AS "
        "SELECT context_id, token_index, t.token_id, v.text AS token, role "
        f"FROM ({each}) AS t LEFT JOIN vocabulary AS v ON v.token_id = t.token_id"
    )
