"""What the shell is offered for an argument that is being typed."""

from __future__ import annotations

import os
from contextlib import suppress

import click
from click.shell_completion import CompletionItem, split_arg_string

from featuredb import api
from featuredb.errors import FeatureDBError

_SHOWN = 40
"""Features offered at most: more would fill the terminal."""

_FEATURES = (
    "SELECT feature_id, list_transform(top_tokens[:3], lambda t: t['token']) FROM features "
    "WHERE starts_with(CAST(feature_id AS VARCHAR), ?) AND (? = '' OR sae = ?) "
    "ORDER BY length(CAST(feature_id AS VARCHAR)), feature_id LIMIT ?"
)


def files(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Whatever the shell itself offers for a path."""
    return [CompletionItem(typed, type="file")]


def saes(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The SAEs of DB."""
    # A shell shows no errors here.
    with suppress(FeatureDBError), api.open(_database(context)) as database:
        return [CompletionItem(sae.name) for sae in database.saes if sae.name.startswith(typed)]
    return []


def features(
    context: click.Context, _parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The features of DB, with what they fire on. ``SAE/`` first where there are several SAEs."""
    name, slash, number = typed.rpartition("/")
    # A shell shows no errors here.
    with suppress(FeatureDBError), api.open(_database(context)) as database:
        if len(database.saes) > 1 and not slash:
            names = (sae.name for sae in database.saes)
            return [CompletionItem(f"{n}/") for n in names if n.startswith(typed)]
        rows = database.sql(_FEATURES, [number, name, name, _SHOWN]).fetchall()
        return [
            CompletionItem(f"{name}{slash}{feature}", help=" ".join(map(repr, tokens or [])))
            for feature, tokens in rows
        ]
    return []


def _database(context: click.Context) -> str:
    """DB, which is always the first argument. Click drops it where an option lacks its value."""
    words = split_arg_string(os.environ["COMP_WORDS"])
    return str(context.params.get("db") or words[2])
