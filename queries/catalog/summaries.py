"""The columns of a feature in answers besides its name and score."""

from __future__ import annotations

from featuredb.store.snapshot import Snapshot
from queries.catalog import literals

SUMMARY = "f.density, f.max_activation, f.top_tokens, f.promoted_tokens, p.label"
"""The columns, from `summaries(snapshot) AS f` and what `LABELS` joins."""

TYPES = {
    "density": "DOUBLE",
    "max_activation": "FLOAT",
    "top_tokens": "VARCHAR[]",
    "promoted_tokens": "VARCHAR[]",
    "label": "VARCHAR",
}
"""Their types in DuckDB."""

LABELS = (
    "LEFT JOIN (SELECT sae, feature_id, text AS label FROM labels WHERE preferred) AS p "
    "ON p.sae = f.sae AND p.feature_id = f.feature_id"
)
"""Joins the preferred labels to `summaries(snapshot) AS f`."""


def summaries(snapshot: Snapshot) -> str:
    """A table of `schemas.SUMMARIES`.

    Read in row groups that have the wanted features: decoding those of ``features``, whose lists
    have numbers beside the tokens, takes three times as long.
    """
    return literals.file(snapshot.derived.summaries.path)
