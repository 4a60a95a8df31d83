"""The order of each SAE's features, fixed before its first segment is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from featuredb.store.feature_order import write_feature_order
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft
from featuredb.store.vectors.directions import table_of


def with_feature_orders(
    layout: Layout, draft: Draft, counts: Mapping[str, npt.NDArray[np.integer[Any]]]
) -> Draft:
    """Store an order for every SAE in `counts` that has none. Returns the draft with them.

    counts: by SAE, [d_sae], how often each feature fired in a sample. Raises `StorageError`.
    """
    saes = []
    for sae in draft.saes:
        if sae.order is None and sae.name in counts:
            order = write_feature_order(layout, table_of(sae.name), draft.number, counts[sae.name])
            sae = msgspec.structs.replace(sae, order=order)
        saes.append(sae)
    return msgspec.structs.replace(draft, saes=tuple(saes))
