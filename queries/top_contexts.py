"""Top contexts of a feature: where it is most active, with the tokens around and the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store import schemas
from featuredb.store.names import feature_name, metadata_columns, parse_feature
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.answers import TopContexts
from queries.arguments import check_bounds, check_k, check_window
from queries.feature_contexts import FeatureContexts, feature_contexts
from queries.filters import contexts_where


class Peak(NamedTuple):
    """One context of a feature: its maximum, the first token reaching it, all active tokens."""

    context_id: int
    activation: float
    token_index: int
    token_indexes: npt.NDArray[np.integer]
    activations: npt.NDArray[np.float32]


def top_contexts(
    store: Store,
    feature: int | str,
    k: int = 20,
    window: int = 16,
    where: str | None = None,
    min_activation: float | None = None,
    max_activation: float | None = None,
) -> TopContexts:
    """The k contexts in which `feature` reaches the highest activation.

    window: tokens shown either side of the first token reaching the maximum, clipped to the
    context. where: a SQL condition on columns of ``documents`` and ``contexts``. min_activation
    and max_activation bound the context's maximum, both inclusive.

    One row per context, by maximum descending, ties by context id ascending; no rows where the
    feature never fires or nothing passes the filters. Raises `UnknownFeatureError`, `QueryError`
    for a bad k, window or bound, `SQLError` for a condition DuckDB refuses.
    """
    sae, number = parse_feature(store.snapshot, feature)
    k, window = check_k(k), check_window(window)
    check_bounds(min_activation, max_activation)
    filtered = where is not None or min_activation is not None or max_activation is not None
    if k <= schemas.EXAMPLES_TOP and not filtered:
        peaks = _ready(store, sae, number, k)
        maximum = peaks[0].activation if peaks else 0.0
    else:
        found = feature_contexts(store, sae, number)
        peaks = _chosen(store, found, k, where, min_activation, max_activation)
        maximum = float(found.peak.max()) if len(found.peak) else 0.0
    return TopContexts(
        _table(store, peaks, window),
        feature=feature_name(store.snapshot, sae, number),
        max_activation=maximum,
    )


def _ready(store: Store, sae: Sae, feature: int, k: int) -> list[Peak]:
    """From the examples kept for every feature: its first rows are its top contexts, by rank."""
    path, directory = store.examples(sae)
    start, stop = int(directory[feature]), int(directory[feature + 1])
    if start == stop:
        return []
    table = store.files.rows(path, start, min(stop, start + k), schemas.EXAMPLES.names[1:])
    table = table.combine_chunks()
    kind, _, context, token, activation, indexes, values = (
        column.chunk(0) for column in table.columns
    )
    count = int(np.count_nonzero(kind.to_numpy() == 0))
    offsets = indexes.offsets.to_numpy() - indexes.offsets[0].as_py()
    flat_indexes, flat_values = indexes.flatten().to_numpy(), values.flatten().to_numpy()
    return [
        Peak(c, a, t, flat_indexes[i:j], flat_values[i:j])
        for c, a, t, i, j in zip(
            context.to_pylist()[:count],
            activation.to_pylist(),
            token.to_pylist(),
            offsets[:-1],
            offsets[1:],
            strict=False,
        )
    ]


def _chosen(
    store: Store,
    found: FeatureContexts,
    k: int,
    where: str | None,
    low: float | None,
    high: float | None,
) -> list[Peak]:
    """From all of the feature's contexts."""
    kept = np.ones(len(found.context_id), bool)
    if low is not None:
        kept &= found.peak >= low
    if high is not None:
        kept &= found.peak <= high
    if where is not None:
        # Asked even when no context is left, so that a bad condition always fails.
        kept &= np.isin(found.context_id, contexts_where(store, where))
    rows = np.flatnonzero(kept)
    if len(rows) > 4 * k:
        # Only rows at or above the k-th highest peak need sorting.
        floor = np.partition(found.peak[rows], len(rows) - k)[len(rows) - k]
        rows = rows[found.peak[rows] >= floor]
    # Rows ascend by context id, so a stable sort by activation leaves ties in that order.
    rows = rows[np.argsort(-found.peak[rows], kind="stable")[:k]]
    return [_peak(found, int(i)) for i in rows]


def _peak(found: FeatureContexts, i: int) -> Peak:
    tokens, activations = found.tokens(i)
    # Of several tokens that reach the maximum, argmax names the first.
    first = int(tokens[np.argmax(activations)])
    return Peak(int(found.context_id[i]), float(found.peak[i]), first, tokens, activations)


def _table(store: Store, peaks: Sequence[Peak], window: int) -> pa.Table:
    texts = store.texts
    texts.fetch([peak.context_id for peak in peaks])
    documents, firsts = [], []
    words: list[str] = []
    shown: list[npt.NDArray[np.float32]] = []
    tokens: list[str] = []
    offsets = [0]
    for peak in peaks:
        ids = texts.token_ids(peak.context_id)
        first = max(peak.token_index - window, 0)
        stop = min(peak.token_index + window + 1, len(ids))
        low, high = np.searchsorted(peak.token_indexes, [first, stop])
        values = np.zeros(stop - first, np.float32)
        values[peak.token_indexes[low:high].astype(np.int64) - first] = peak.activations[low:high]
        spelled = texts.read(ids[first:stop])
        documents.append(texts.document_of(peak.context_id))
        firsts.append(first)
        shown.append(values)
        words += spelled
        tokens.append(spelled[peak.token_index - first])
        offsets.append(offsets[-1] + stop - first)
    starts = pa.array(offsets, pa.int32())
    columns = {
        "rank": pa.array(range(1, len(peaks) + 1), pa.int32()),
        "context_id": pa.array([p.context_id for p in peaks], pa.int64()),
        "document_id": pa.array(documents, pa.int64()),
        "activation": pa.array([p.activation for p in peaks], pa.float32()),
        "token_index": pa.array([p.token_index for p in peaks], pa.int32()),
        "token": pa.array(tokens, pa.string()),
        "window_start": pa.array(firsts, pa.int32()),
        "tokens": pa.ListArray.from_arrays(starts, pa.array(words, pa.string())),
        "activations": pa.ListArray.from_arrays(
            starts, pa.array(np.concatenate(shown) if shown else [], pa.float32())
        ),
    }
    about = texts.documents(documents)
    columns |= zip(metadata_columns(about.column_names), about.columns, strict=True)
    return pa.table(columns)
