"""Rows of user data for tests."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.snapshot import Sae


def measured(sae: Sae, features: Sequence[int], strength: float = 1.0) -> pa.Table:
    """What a measurement of some features might have found, without author and time."""
    rows = [
        {
            "sae_sha256": sae.sha256,
            "hook": sae.hook,
            "feature_id": feature,
            "strength": strength,
            "n_prompts": 1,
            "output_score": None,
            "kl": 0.5 * feature,
            "kl_per_unit": 0.5,
            "moved": 2.0,
            "collateral": 0.25,
            "collateral_forecast": 0.125,
            "collateral_others": [],
            "raised_tokens": [{"token": " Bank", "change": 1.5}],
            "lowered_tokens": [],
        }
        for feature in features
    ]
    schema = schemas.MEASURED
    for name in ("created", "author"):
        schema = schema.remove(schema.get_field_index(name))
    return pa.Table.from_pylist(rows, schema=schema)
