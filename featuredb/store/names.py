"""How a feature is named: a number where the database has one SAE, else ``"sae_name/1234"``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from featuredb.errors import UnknownFeatureError
from featuredb.store.snapshot import Draft, Sae, Snapshot

NUMBER = "-?[0-9]{1,18}"
"""What counts as a feature's number (a regular expression; negative ones get the range error)."""

NO_FEATURE = "there is no feature {number}: {sae} has features 0 to {last}"
NO_SAE = "there is no SAE {name}: this database has {names}"
WHICH_SAE = "feature {feature} does not say of which SAE: write NAME/NUMBER, NAME being {names}"
NOT_A_FEATURE = "{feature} is not a feature: give its number, or SAE/NUMBER as in {example}"
NO_CONTEXT = "there is no context {context}: this database has {spans}"
BAD_COUNT = "k must be a whole number, at least 1 and below 2^63, not {k}"
BAD_WINDOW = "window must be a whole number, at least 0 and below 2^63, not {window}"
"""Templates shared with the catalog's macros, so that Python and SQL say the same."""


def parse_feature(snapshot: Snapshot, feature: Any) -> tuple[Sae, int]:
    """The SAE and the number that `feature` names.

    feature: an integer or its digits where the database has one SAE; ``"sae_name/1234"`` (split
    at the last slash) always. Raises `UnknownFeatureError` saying what there is instead.
    """
    if isinstance(feature, bool) or not isinstance(feature, int | str | np.integer):
        raise UnknownFeatureError(NOT_A_FEATURE.format(feature=feature, example=example(snapshot)))
    text = str(feature)
    name, slash, number = text.rpartition("/")
    if slash:
        sae = next((s for s in snapshot.saes if s.name == name), None)
        if sae is None:
            raise UnknownFeatureError(NO_SAE.format(name=name, names=sae_names(snapshot)))
    elif len(snapshot.saes) == 1:
        sae = snapshot.saes[0]
    else:
        raise UnknownFeatureError(WHICH_SAE.format(feature=text, names=sae_names(snapshot)))
    if not re.fullmatch(NUMBER, number):
        raise UnknownFeatureError(NOT_A_FEATURE.format(feature=text, example=example(snapshot)))
    if not 0 <= int(number) < sae.d_sae:
        raise UnknownFeatureError(
            NO_FEATURE.format(number=int(number), sae=sae.name, last=sae.d_sae - 1)
        )
    return sae, int(number)


def feature_name(snapshot: Snapshot, sae: Sae, number: int) -> str:
    """The shortest name that `parse_feature` understands."""
    return str(number) if len(snapshot.saes) == 1 else f"{sae.name}/{number}"


def context_ranges(snapshot: Snapshot | Draft) -> list[tuple[int, int]]:
    """First and last id of the contexts there are, ascending: a dropped corpus leaves a gap."""
    ranges: list[tuple[int, int]] = []
    for corpus in snapshot.corpora:
        first, last = corpus.first_context, corpus.first_context + corpus.n_contexts - 1
        if ranges and ranges[-1][1] == first - 1:
            first = ranges.pop()[0]
        if first <= last:
            ranges.append((first, last))
    return ranges


def context_spans(snapshot: Snapshot | Draft) -> str:
    """The contexts there are, in words."""
    spans = " and ".join(f"{first} to {last}" for first, last in context_ranges(snapshot))
    return f"contexts {spans}" if spans else "no contexts"


def sae_names(snapshot: Snapshot) -> str:
    """The SAEs of the database, in its order."""
    return ", ".join(s.name for s in snapshot.saes) or "none"


def example(snapshot: Snapshot) -> str:
    """A feature written out in full."""
    return f"{snapshot.saes[0].name}/12" if snapshot.saes else "sae/12"


ANSWER_COLUMNS = (
    "rank",
    "context_id",
    "document_id",
    "activation",
    "token_index",
    "token",
    "window_start",
    "tokens",
    "activations",
)
"""Columns of the top contexts, in order, before the document's own."""


def document_columns(snapshot: Snapshot | Draft) -> list[str]:
    """What answers carry of a document: ``source``, then the corpora's own columns, in order.

    Names that SQL does not tell apart are one column, called as in the first corpus.
    """
    columns = {"source": "source"}
    for corpus in snapshot.corpora:
        for name in corpus.metadata:
            columns.setdefault(folded(name), name)
    return list(columns.values())


def folded(name: str) -> str:
    """A column's name as DuckDB compares them: without the case of A to Z, and of no other."""
    return name.encode().lower().decode()


def metadata_columns(names: Sequence[str]) -> list[str]:
    """What an answer calls document columns `names`, in order: their own names, if they are free.

    One that the answer uses already gets ``document_`` in front, as often as it takes to differ
    from the others. DuckDB does not tell upper case from lower in names, so neither does this.
    """
    taken = {*ANSWER_COLUMNS, *(name.lower() for name in names)}
    answer = []
    for name in names:
        if name.lower() in ANSWER_COLUMNS:
            while name.lower() in taken:
                name = f"document_{name}"
        answer.append(name)
    return answer
