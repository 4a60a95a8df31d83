"""What the shell is offered for an argument that is being typed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import click
from click.shell_completion import CompletionItem, split_arg_string

from featuredb.errors import FeatureDBError

_SHOWN = 40
"""Features offered at most: more would fill the terminal."""


def files(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Whatever the shell itself offers for a path."""
    return [CompletionItem(typed, type="file")]


def saes(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The SAEs of DB."""
    return [CompletionItem(name) for name in _names(context) if name.startswith(typed)]


def features(
    context: click.Context, _parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The features of DB, with what they fire on; ``SAE/`` first where there are several SAEs."""
    names = _names(context)
    name, slash, number = typed.rpartition("/")
    if len(names) > 1 and not slash:
        return [CompletionItem(f"{n}/") for n in names if n.startswith(typed)]
    return list(_numbers(context, name or None, number, f"{name}{slash}"))


def _numbers(
    context: click.Context, sae: str | None, number: str, before: str
) -> Iterator[CompletionItem]:
    import featuredb

    query = (
        "SELECT feature_id, list_transform(top_tokens[:3], lambda t: t['token']) FROM features "
        "WHERE starts_with(CAST(feature_id AS VARCHAR), ?) AND (? IS NULL OR sae = ?) "
        "ORDER BY length(CAST(feature_id AS VARCHAR)), feature_id LIMIT ?"
    )
    with suppress(FeatureDBError), featuredb.open(_database(context)) as database:
        for feature, tokens in database.sql(query, [number, sae, sae, _SHOWN]).fetchall():
            yield CompletionItem(f"{before}{feature}", help=" ".join(map(repr, tokens or [])))


def _names(context: click.Context) -> list[str]:
    """The SAEs of DB, none where it cannot be opened: a shell shows no errors here."""
    import featuredb

    with suppress(FeatureDBError), featuredb.open(_database(context)) as database:
        return [sae.name for sae in database.saes]
    return []


def _database(context: click.Context) -> str:
    """DB, which is always the first argument. Click drops it where an option lacks its value."""
    words = split_arg_string(os.environ["COMP_WORDS"])
    return str(context.params.get("db") or words[2])
