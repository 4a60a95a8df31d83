"""The order of each SAE's features, fixed before its first run is written."""

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
    """The draft with a stored order for every SAE that is to be run and has none.

    counts: by name of an SAE that is to be run, [d_sae], how often each feature fired in a sample.
    Others may have none, as those of format 1 that no run was written of since. Raises
    `StorageError`.
    """
    saes = []
    for sae in draft.saes:
        if sae.order is None and sae.name in counts:
            order = write_feature_order(layout, table_of(sae.name), draft.number, counts[sae.name])
            sae = msgspec.structs.replace(sae, order=order)
        saes.append(sae)
    return msgspec.structs.replace(draft, saes=tuple(saes))
