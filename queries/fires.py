"""Which features fire on a text that the store holds: a context, or a whole document."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.errors import UnknownContextError
from featuredb.store.snapshot import Corpus
from featuredb.store.store import Store
from queries.answers import Firing
from queries.arguments import check_k
from queries.firing import Active, rank_firing
from queries.sql import duckdb_errors


def fires_in(store: Store, context_id: int, k: int = 20) -> Firing:
    """The k most specific features of a stored context, over all SAEs.

    token_index counts the context's tokens, BOS included. Ranked as `rank_firing` says; no rows
    where nothing fires. Raises `UnknownContextError`, `QueryError` for a bad k.
    """
    k = check_k(k)
    try:
        context_id = operator.index(context_id)
    except TypeError:
        raise UnknownContextError(f"{context_id!r} is not a context: give its number") from None
    tokens = store.texts.read(store.texts.token_ids(context_id))
    active = [Active(sae, *_context(store, sae, context_id)) for sae in store.snapshot.saes]
    return rank_firing(store, active, tokens, k)


def stored_document(store: Store, text: str) -> int | None:
    """The first document whose text is exactly `text`, None when there is none."""
    for corpus in store.snapshot.corpora:
        if corpus.text_hashes is not None:
            found = store.texts.with_text(corpus, text)
        else:
            found = _scanned(store, corpus, text)
        if found is not None:
            return found
    return None


def _scanned(store: Store, corpus: Corpus, text: str) -> int | None:
    """As `stored_document`, of a corpus without hashes: reads all of its texts."""
    from queries.catalog import literals
    from queries.connection import bare

    # A DuckDB of its own: this also runs inside a SQL function of the store's connection, which
    # must not wait for itself.
    statement = f"SELECT min(document_id) FROM {literals.rows('?')} WHERE text = ?"
    with duckdb_errors(store.root), bare(store.root) as connection:
        path = f"{literals.folder(store.root)}/{corpus.documents.path}"
        found = connection.execute(statement, [path, text]).fetchone()
    return None if found is None or found[0] is None else int(found[0])


def fires_in_document(store: Store, document_id: int, k: int = 20) -> Firing:
    """The k most specific features of a stored document, over all SAEs.

    token_index counts the document's own tokens, BOS not among them. Where windows overlap (a
    stride) a token counts in the first window that has it. Order and ties as `rank_firing`.
    """
    k = check_k(k)
    tokens: list[str] = []
    pieces: dict[str, list[Active]] = {s.name: [] for s in store.snapshot.saes}
    for context_id, skipped, shift in store.texts.document_contexts(document_id):
        ids = store.texts.token_ids(context_id)[skipped:]
        tokens += store.texts.read(ids)
        for sae in store.snapshot.saes:
            token, feature, activation = _context(store, sae, context_id)
            kept = token >= skipped
            token, feature, activation = token[kept] + shift, feature[kept], activation[kept]
            pieces[sae.name].append(Active(sae, token, feature, activation))
    active = [
        Active(
            sae,
            np.concatenate([p.token_index for p in pieces[sae.name]]),
            np.concatenate([p.feature_id for p in pieces[sae.name]]),
            np.concatenate([p.activation.astype(np.float32) for p in pieces[sae.name]]),
        )
        for sae in store.snapshot.saes
        if pieces[sae.name]
    ]
    return rank_firing(store, active, tokens, k)


def _context(store: Store, sae: Any, context_id: int) -> tuple[npt.NDArray[Any], ...]:
    """(token_index int64, feature_id, activation), all [n], of one SAE in one context."""
    for segment in store.token_major(sae):
        if segment.segment.first_context <= context_id < segment.segment.end_context:
            token_index, rows = segment.context(context_id)
            return np.repeat(token_index, np.diff(rows.offsets)), rows.feature_id, rows.activation
    return np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.float16)
