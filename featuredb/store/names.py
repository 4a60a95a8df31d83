"""Feature names: a number if the database has one SAE, otherwise ``"sae_name/1234"``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from featuredb.errors import UnknownFeatureError, shortened
from featuredb.store.snapshot import Draft, Sae, Snapshot

NUMBER = "-?[0-9]{1,18}"
"""Regular expression of a feature's number. Negative ones raise the range error."""

NO_FEATURE = "there is no feature {number}: {sae} has features 0 to {last}"
NO_SAE = "there is no SAE {name}: this database has {names}"
WHICH_SAE = "feature {feature} does not say of which SAE: write NAME/NUMBER, NAME being {names}"
NOT_A_FEATURE = "{feature} is not a feature: give its number, or SAE/NUMBER as in {example}"
NO_CONTEXT = "there is no context {context}: this database has {spans}"
NO_DIRECTIONS = (
    "{sae} has no directions: its activations were imported without the SAE, ask by coactivation"
)
BAD_COUNT = "k must be a whole number, at least 1 and below 2^63, not {k}"
BAD_OFFSET = "offset must be a whole number, at least 0 and below 2^63, not {offset}"
BAD_WINDOW = "window must be a whole number, at least 0 and below 2^63, not {window}"
BAD_SEED = "seed must be a whole number, at least 0 and below 2^63, not {seed}"
BAD_BINS = "bins must be a whole number from 1 to k, which is {k}, not {bins}"
BAD_UNIT = "unit must be token, context or document, not {unit}"
BAD_WITHIN = "within must be a whole number of tokens, at least 0, not {within}"
BAD_LEAST = "at_least must be from 1 to the number of features, which is {n}, not {least}"
BAD_MATCH = "silent contexts are like tokens, neighbors or random, not {like}"
BAD_BINS_BY = "bins are made by width or quantile, not {by}"
"""Templates shared with the catalog's macros, so that Python and SQL give equal messages."""


def is_sae_name(name: str) -> bool:
    """Whether an SAE can be called so: ``NAME/NUMBER`` names a feature, ``NAME`` a file."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable()


def file_name(text: str) -> str:
    """A text of a database as the name of one file or folder, whatever the text."""
    name = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in text)
    return name.lstrip(".") or "-"


def parse_feature(snapshot: Snapshot, feature: Any) -> tuple[Sae, int]:
    """The SAE and number of a feature name.

    feature: ``"sae_name/1234"`` (split at the last slash), or an integer or its digits if the
    database has one SAE. Raises `UnknownFeatureError` listing the valid names.
    """
    if isinstance(feature, bool) or not isinstance(feature, int | str | np.integer):
        raise UnknownFeatureError(_not_a_feature(snapshot, feature))
    text = str(feature)
    name, slash, number = text.rpartition("/")
    if slash:
        sae = sae_named(snapshot, name)
    elif len(snapshot.saes) == 1:
        sae = snapshot.saes[0]
    else:
        names = sae_names(snapshot)
        raise UnknownFeatureError(WHICH_SAE.format(feature=shortened(text), names=names))
    if not re.fullmatch(NUMBER, number):
        raise UnknownFeatureError(_not_a_feature(snapshot, text))
    if not 0 <= int(number) < sae.d_sae:
        raise UnknownFeatureError(
            NO_FEATURE.format(number=int(number), sae=sae.name, last=sae.d_sae - 1)
        )
    return sae, int(number)


def _not_a_feature(snapshot: Snapshot, feature: Any) -> str:
    return NOT_A_FEATURE.format(feature=shortened(str(feature)), example=example(snapshot))


def only_sae(snapshot: Snapshot, name: str | None) -> Sae:
    """The SAE of that name, or the only one. Raises `UnknownFeatureError`."""
    if name is not None:
        return sae_named(snapshot, name)
    if len(snapshot.saes) > 1:
        raise UnknownFeatureError(f"there are several SAEs: say which, {sae_names(snapshot)}")
    return snapshot.saes[0]


def sae_named(snapshot: Snapshot, name: str) -> Sae:
    """The SAE of that name. Raises `UnknownFeatureError` listing those there are."""
    for sae in snapshot.saes:
        if sae.name == name:
            return sae
    raise UnknownFeatureError(NO_SAE.format(name=shortened(name), names=sae_names(snapshot)))


def context_ranges(snapshot: Snapshot | Draft) -> list[tuple[int, int]]:
    """First and last ids of the existing contexts, ascending. A dropped corpus leaves a gap."""
    ranges: list[tuple[int, int]] = []
    for corpus in snapshot.corpora:
        first, last = corpus.first_context, corpus.first_context + corpus.n_contexts - 1
        if ranges and ranges[-1][1] == first - 1:
            first = ranges.pop()[0]
        if first <= last:
            ranges.append((first, last))
    return ranges


def context_spans(snapshot: Snapshot | Draft) -> str:
    """The existing contexts, for messages."""
    spans = " and ".join(f"{first} to {last}" for first, last in context_ranges(snapshot))
    return f"contexts {spans}" if spans else "no contexts"


def sae_names(snapshot: Snapshot) -> str:
    """The SAEs of the database, in order."""
    return ", ".join(s.name for s in snapshot.saes) or "none"


def example(snapshot: Snapshot) -> str:
    """A full feature name, for messages."""
    return f"{snapshot.saes[0].name}/12" if snapshot.saes else "sae/12"


ANSWER_COLUMNS = (
    "sae",
    "feature_id",
    "rank",
    "context_id",
    "document_id",
    "activation",
    "token_index",
    "token",
    "window_start",
    "tokens",
    "activations",
    "bin",
    "bin_low",
    "bin_high",
    "bin_contexts",
    "bin_weight",
    "matched",
    "strength",
    "features",
    "feature_activations",
)
"""Columns of answers of contexts before the document columns, which are named differently."""


def document_columns(snapshot: Snapshot | Draft) -> list[str]:
    """Document columns of an answer: ``source``, then the corpora's metadata columns, in order.

    Names that are equal in SQL are one column, named as in the first corpus.
    """
    columns = {"source": "source"}
    for corpus in snapshot.corpora:
        for name in corpus.metadata:
            columns.setdefault(folded(name), name)
    return list(columns.values())


def corpus_columns(snapshot: Snapshot | Draft) -> tuple[str, str]:
    """What the columns of a document's corpus, its name and id, are called in ``documents``.

    ``corpus`` and ``corpus_id``, with ``_`` appended until no corpus has a column of that name.
    Names of new corpora leave those free.
    """
    taken = {folded(name) for corpus in snapshot.corpora for name in corpus.metadata}
    name, number = "corpus", "corpus_id"
    while name in taken:
        name += "_"
    while number in taken:
        number += "_"
    return name, number


def folded(name: str) -> str:
    """A column's name as DuckDB compares it: only A to Z are lowercased."""
    return name.encode().lower().decode()


def metadata_columns(names: Sequence[str]) -> list[str]:
    """Names of the document columns `names` in an answer, in order.

    A name that the answer already uses is prefixed with ``document_`` until it is unique.
    DuckDB ignores case in names, so this does too.
    """
    taken = {*ANSWER_COLUMNS, *(name.lower() for name in names)}
    answer = []
    for name in names:
        if name.lower() in ANSWER_COLUMNS:
            while name.lower() in taken:
                name = f"document_{name}"
        answer.append(name)
    return answer
