"""Forecast of a feature's collateral, from what the database stores and the SAE's directions.

Set from nothing to its maximum v, feature f adds v d_f to the stream, which changes what another
feature g reads by v e_g · d_f. Where g is active, its activation changes by that. Where it is not,
it becomes active if that exceeds the smallest activation that it is ever stored with, m_g. So per
unit of f's activation

    forecast(f) = Σ_g  p_g |e_g · d_f|  +  (1 - p_g) e_g · d_f [v e_g · d_f > m_g]

with e_g and d_f the encoder and decoder directions, and p_g the share of tokens on which g is
active: of those on which f is, for the features stored as co-active with f, else of all. The
inputs are those of arXiv 2606.08365: geometry, density, co-activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from ingest.sae import LoadedSae


class CollateralForecast:
    """Forecasts for features of one SAE."""

    def __init__(self, store: Store, record: Sae, sae: LoadedSae) -> None:
        self._sae = sae
        derived = store.snapshot.derived
        statistics = store.files.read(
            derived.features.path, columns=["min_activation", "density"]
        ).slice(store.features.row(record, 0), record.d_sae)
        self._density = statistics.column("density").to_numpy()
        # A feature that never fires is not expected to.
        self._least = np.nan_to_num(statistics.column("min_activation").to_numpy(), nan=np.inf)
        self._maximum = store.features.max_activation(record)
        self._count = store.features.count(record)
        rows = store.files.read(derived.coactivation.path)
        rows = rows.filter(pc.equal(rows.column("sae"), record.name))
        self._feature, self._other = (
            rows.column(name).to_numpy() for name in ("feature_id", "neighbor_id")
        )
        self._share = self._share_of(rows.column("score").to_numpy())

    def of(self, features: Sequence[int]) -> npt.NDArray[np.float32]:
        """Forecasts float32 [n] for features that fire."""
        ids = np.asarray(features)
        own = torch.from_numpy(ids).to(self._sae.device)
        change = (self._sae.W_dec[own] @ self._sae.W_enc).cpu().numpy()
        active = np.tile(self._density, (len(ids), 1))
        for row, feature in enumerate(features):
            a, b = np.searchsorted(self._feature, [feature, feature + 1])
            active[row, self._other[a:b]] = self._share[a:b]
        woken = np.where(change * self._maximum[ids][:, None] > self._least, change, 0)
        spread = active * np.abs(change) + (1 - active) * woken
        spread[np.arange(len(ids)), ids] = 0
        return np.asarray(spread.sum(axis=1), np.float32)

    def _share_of(self, jaccard: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Of the tokens on which each feature is active, the share on which its partner is."""
        own, other = (self._count[ids] for ids in (self._feature, self._other))
        both = jaccard.astype(np.float64) * (own + other) / (1 + jaccard)
        return np.asarray(both / np.maximum(own, 1))
