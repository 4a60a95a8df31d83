"""What the shell is offered for an argument that is being typed.

Read from the store's files alone, without DuckDB: a shell waits for this at each press of Tab.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, split_arg_string

from featuredb.errors import FeatureDBError
from featuredb.render.characters import label, neutralize

if TYPE_CHECKING:
    from featuredb.store.store import Store

_SHOWN = 40
"""Features offered at most: more would fill the terminal."""

_TOKENS = 3
"""Tokens of a feature that a word is looked for in, and that are shown beside it."""

_OF_CONTEXTS = ("document_id", "context_id", "n_tokens", "text")
_OF_TOKENS = ("token", "token_id", "token_index", "role")


def files(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Whatever the shell itself offers for a path."""
    return [CompletionItem(typed, type="file")]


def saes(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The SAEs of DB."""
    # A shell shows no errors here.
    with suppress(FeatureDBError):
        names = (sae.name for sae in _store(context).snapshot.saes)
        return [CompletionItem(name) for name in names if name.startswith(typed)]
    return []


def features(
    context: click.Context, _parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The features of DB, with what they fire on: by number, or by the beginning of a word.

    Where there are several SAEs, their names with a slash come first, if any begins so.
    """
    # A shell shows no errors here.
    with suppress(FeatureDBError):
        store = _store(context)
        names = [sae.name for sae in store.snapshot.saes]
        several = len(names) > 1
        saes = [f"{n}/" for n in names if several and n.startswith(typed)]
        return [*map(CompletionItem, saes)] or list(_features(store, typed, several))
    return []


def columns(
    context: click.Context, _parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The columns that a SQL condition on DB may name, for the name that is being typed last."""
    from featuredb.store.names import document_columns

    before, name = _LAST_NAME.fullmatch(typed).groups()  # type: ignore[union-attr]
    # A shell shows no errors here.
    with suppress(FeatureDBError):
        known = [*document_columns(_store(context).snapshot), *_OF_CONTEXTS, *_OF_TOKENS]
        quoted = (each if each.isidentifier() else f'"{each}"' for each in known)
        found = dict.fromkeys(each for each in quoted if each.strip('"').startswith(name))
        return [CompletionItem(before + each) for each in found]
    return []


_LAST_NAME = re.compile(r'(.*?)"?(\w*)', re.DOTALL)


def _features(store: Store, typed: str, several: bool) -> Iterator[CompletionItem]:
    """By number first, then by the words of labels, then by the place of the word among a feature's
    tokens, then density."""
    name, slash, word = typed.rpartition("/")
    table = store.files.read(
        store.snapshot.derived.summaries.path,
        columns=["sae", "feature_id", "density", "top_tokens"],
    )
    found: list[tuple[int, float, str, str, str]] = []
    folded = word.casefold()
    every = store.labels.every()
    labels = {
        (sae.name, number): text
        for sae in store.snapshot.saes
        for (sha256, hook, number), text in every.items()
        if (sha256, hook) == (sae.sha256, sae.hook)
    }
    for batch in table.to_batches():
        for sae, feature, density, tokens in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if slash and sae != name:
                continue
            tokens = (tokens or [])[:_TOKENS]
            text = labels.get((sae, feature), "")
            shown = text or " ".join(map(label, tokens))
            if str(feature).startswith(word):
                found.append((-1, len(str(feature)), sae, str(feature), shown))
            elif text and any(w.startswith(folded) for w in text.casefold().split()):
                found.append((0, -density, sae, str(feature), shown))
            elif place := _place(tokens, folded):
                found.append((place, -density, sae, str(feature), shown))
    for *_, sae, number, shown in sorted(found, key=lambda each: each[:2])[:_SHOWN]:
        value = f"{sae}/{number}" if several or slash else number
        yield CompletionItem(value, help=neutralize(shown) or None)


def _place(tokens: list[str], word: str) -> int:
    """The place, from 1, of the first token that begins with the word, 0 if none does."""
    beginning = (i for i, t in enumerate(tokens, 1) if t.strip().casefold().startswith(word))
    return next(beginning, 0)


def _store(context: click.Context) -> Store:
    """DB, which is always the first argument. Click drops it where an option lacks its value."""
    from featuredb.store.store import Store

    words = split_arg_string(os.environ["COMP_WORDS"])
    return Store.open(str(context.params.get("db") or words[2]))
