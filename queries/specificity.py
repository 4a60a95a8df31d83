"""Ranking the features active on a text by how specific they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store.snapshot import Sae
from featuredb.store.statistics import SUMMARY_COLUMNS
from featuredb.store.store import Store


class Active(NamedTuple):
    """Activations of one SAE on a text, all [n], in any order. One per token and feature.

    token_index counts the tokens of the text. Activation is as stored.
    """

    sae: Sae
    token_index: npt.NDArray[np.integer[Any]]
    feature_id: npt.NDArray[np.integer[Any]]
    activation: npt.NDArray[np.floating[Any]]


class ActiveText(NamedTuple):
    """What is active on a text, by SAE, and the text's tokens, BOS not among them."""

    active: list[Active]
    tokens: list[str]


class _Peaks(NamedTuple):
    """One entry per active feature of one SAE, ascending. Offsets [f + 1] into the sorted rows."""

    sae: Sae
    feature: npt.NDArray[np.int64]
    specificity: npt.NDArray[np.float32]
    peak: npt.NDArray[np.float32]
    mass: npt.NDArray[np.float64]
    peak_index: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]


PRIOR = 30
"""Firings at the typical maximum that every feature is taken to have had besides its own."""


def specificity(
    activation: npt.NDArray[np.float32],
    max_activation: npt.NDArray[np.float32],
    count: npt.NDArray[np.int64],
    recorded_tokens: int,
    typical: float,
) -> npt.NDArray[np.float32]:
    """How much an activation says about this text rather than about text, float32 [n].

    The share of the feature's maximum, times the bits of surprise that the feature fires at all:
    ``activation / reach * log2((recorded_tokens + 1) / (count + 1))``, in float64, rounded to
    float32. The form is that of tf-idf. The largest of a few activations says little about how
    strong a feature gets, so ``reach = max(max_activation, (count * max_activation + PRIOR *
    typical) / (count + PRIOR))``. docs/design.md has the measurements.

    Args:
        activation: [n].
        max_activation: [n], the feature's largest stored activation. NaN where it never fired.
        count: [n], its stored activations.
        recorded_tokens: Of its SAE.
        typical: See `typical_maximum`.
    """
    n = count.astype(np.float64)
    largest = np.where(count == 0, 0.0, max_activation).astype(np.float64)
    reach = np.maximum(largest, (n * largest + PRIOR * typical) / (n + PRIOR))
    share = activation.astype(np.float64) / reach
    rarity = np.log2((recorded_tokens + 1) / (n + 1))
    answer: npt.NDArray[np.float32] = (share * rarity).astype(np.float32)
    return answer


def typical_maximum(max_activation: npt.NDArray[np.float32]) -> float:
    """The median of the maxima of an SAE's features that ever fired, 1 where none did.

    The smaller of the two in the middle. max_activation: [d_sae], NaN where it never fired.
    """
    fired = max_activation[~np.isnan(max_activation)]
    return float(np.quantile(fired, 0.5, method="inverted_cdf")) if len(fired) else 1.0


SQL_SPECIFICITY = f"""CAST(CAST(activation AS DOUBLE) / greatest(
    CAST(coalesce(max_activation, 0) AS DOUBLE),
    (count * CAST(coalesce(max_activation, 0) AS DOUBLE) + {PRIOR} * CAST(typical AS DOUBLE))
        / CAST(count + {PRIOR} AS DOUBLE))
    * log2(CAST(recorded_tokens + 1 AS DOUBLE) / CAST(count + 1 AS DOUBLE)) AS FLOAT)"""
"""The body of a macro of the arguments of `specificity`."""

SQL_TYPICAL = (
    "SELECT sae, coalesce(quantile_disc(max_activation, 0.5), 1) AS typical FROM features "
    "GROUP BY sae"
)
"""`typical_maximum` of every SAE."""


def specificity_of(
    store: Store,
    sae: Sae,
    feature: npt.NDArray[np.int64],
    activation: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """`specificity` of activations [n] of features [n] of an SAE."""
    maxima = store.features.max_activation(sae)
    return specificity(
        activation,
        maxima[feature],
        store.features.count(sae)[feature],
        store.snapshot.recorded_tokens(sae.name),
        typical_maximum(maxima),
    )


def between(
    store: Store, active: Sequence[Active], low: float | None, high: float | None
) -> list[Active]:
    """Without the features whose density is below `low` or above `high`."""
    kept = []
    for each in active:
        recorded = max(1, store.snapshot.recorded_tokens(each.sae.name))
        density = store.features.count(each.sae)[each.feature_id.astype(np.int64)] / recorded
        inside = (density >= (low or 0.0)) & (density <= (1.0 if high is None else high))
        kept.append(
            Active(
                each.sae,
                each.token_index[inside],
                each.feature_id[inside],
                each.activation[inside],
            )
        )
    return kept


def most_specific(
    store: Store, active: Sequence[Active], tokens: list[str], k: int, by: str = "specificity"
) -> pa.Table:
    """The k most specific features among those active on a text of `tokens`.

    Order: specificity, or by ``activation`` (its maximum) or ``mass`` (its sum over the text),
    descending, ties by SAE in the snapshot's order, then feature id. No rows where nothing is
    active.
    """
    peaks = [_peaks(store, a) for a in active if len(a.token_index)]
    order = store.sae_order
    sae_index = _join([np.full(len(p.feature), order[p.sae.name]) for p in peaks], np.int64)
    feature = _join([p.feature for p in peaks], np.int64)
    score = _join([p.specificity for p in peaks], np.float32)
    keys: dict[str, list[npt.NDArray[Any]]] = {
        "activation": [p.peak for p in peaks],
        "mass": [p.mass for p in peaks],
    }
    key = _join(keys.get(by, [p.specificity for p in peaks]), np.float64)
    best = np.lexsort((feature, sae_index, -key))[:k]
    by_order = {order[p.sae.name]: p for p in peaks}
    firsts = np.cumsum([0] + [len(p.feature) for p in peaks])

    rows, shown, indexes, counts, maxima = [], [], [], [], []
    for i in best:
        which = int(np.searchsorted(firsts, i, side="right")) - 1
        group, at = peaks[which], int(i - firsts[which])
        low, high = group.offsets[at : at + 2]
        values = np.zeros(len(tokens), np.float32)
        values[group.token_index[low:high]] = group.activation[low:high]
        shown.append(values)
        indexes.append(int(group.peak_index[at]))
        counts.append(int(high - low))
        maxima.append(group.peak[at])
        rows.append(store.features.row(group.sae, int(group.feature[at])))
    about = store.features.summaries(rows)
    columns = {
        "rank": pa.array(range(1, len(best) + 1), pa.int32()),
        "sae": pa.array([by_order[int(i)].sae.name for i in sae_index[best]], pa.string()),
        "feature_id": pa.array(feature[best], pa.int64()),
        "specificity": pa.array(score[best], pa.float32()),
        "activation": pa.array(maxima, pa.float32()),
        "token_index": pa.array(indexes, pa.int32()),
        "token": pa.array([tokens[i] for i in indexes], pa.string()),
        "n_tokens": pa.array(counts, pa.int32()),
        "activations": pa.ListArray.from_arrays(
            pa.array(np.arange(len(best) + 1) * len(tokens), pa.int32()),
            pa.array(_join(shown, np.float32), pa.float32()),
        ),
    }
    for name in SUMMARY_COLUMNS:
        columns[name] = about.column(name)
    return pa.table(columns)


def _peaks(store: Store, active: Active) -> _Peaks:
    sae = active.sae
    order = np.lexsort((active.token_index, active.feature_id))
    feature = active.feature_id[order].astype(np.int64)
    token = active.token_index[order].astype(np.int64)
    activation = active.activation[order].astype(np.float32)
    starts = np.flatnonzero(np.concatenate(([True], feature[1:] != feature[:-1])))
    offsets = np.append(starts, len(feature))
    peak = np.maximum.reduceat(activation, starts)
    reaching = np.flatnonzero(activation == np.repeat(peak, np.diff(offsets)))
    first = reaching[np.searchsorted(reaching, starts)]
    ids = feature[starts]
    score = specificity_of(store, sae, ids, peak)
    mass = np.add.reduceat(activation.astype(np.float64), starts)
    return _Peaks(sae, ids, score, peak, mass, token[first], offsets, token, activation)


def _join(arrays: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)
