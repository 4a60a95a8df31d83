"""A token of the model, by its text or its id."""

from __future__ import annotations

from featuredb.errors import QueryError
from featuredb.store.store import Store
from queries.arguments import check_text, is_whole

_IDS_SHOWN = 5


def token_named(store: Store, token: str | int) -> int:
    """The id of a token. Raises `QueryError` unless exactly one is meant."""
    texts = store.texts.token_texts
    if is_whole(token):
        if not 0 <= int(token) < len(texts):
            raise QueryError(f"there is no token {token}: their ids are 0 to {len(texts) - 1}")
        return int(token)
    text = check_text(token, "the token")
    ids = store.texts.ids_of(text)
    if len(ids) == 1:
        return ids[0]
    if ids:
        shown = ", ".join(map(str, ids[:_IDS_SHOWN])) + (", …" if len(ids) > _IDS_SHOWN else "")
        raise QueryError(f"{len(ids)} tokens read {text!r}: in Python give the id of one, {shown}")
    word = text.strip()
    similar = [t for t in (f" {word}", word, f" {word.capitalize()}") if store.texts.ids_of(t)]
    hint = (
        f"did you mean {' or '.join(map(repr, similar))}?"
        if similar
        else ("the model spells it with several")
    )
    raise QueryError(f"there is no token {text!r}: {hint}")
