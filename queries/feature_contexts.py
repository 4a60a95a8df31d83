"""All of one feature's activations, by context: what is computed where no table is kept ready."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.snapshot import Sae
from featuredb.store import Store


class FeatureContexts(NamedTuple):
    """A feature's contexts, ascending by id, and its active tokens in them.

    context_id: int64 [c]. peak: float32 [c], the context's maximum. peak_index: int64 [c], the
    first token reaching it. offsets: int64 [c + 1]: context i owns entries offsets[i] to
    offsets[i+1] of token_index int64 [n] (ascending within a context) and activation float32 [n].
    """

    context_id: npt.NDArray[np.int64]
    peak: npt.NDArray[np.float32]
    peak_index: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]


def feature_activations(
    store: Store, sae: Sae, feature: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(context_id int64, token_index int64, activation float32), all [n], in text order."""
    bits = store.snapshot.position_bits
    contexts, tokens, values = [], [], []
    for segment in store.feature_major(sae):
        if segment.count(feature) == 0:
            continue
        position, activation = segment.feature(feature)
        contexts.append((position >> np.uint32(bits)).astype(np.int64))
        contexts[-1] += segment.segment.first_context
        tokens.append((position & np.uint32((1 << bits) - 1)).astype(np.int64))
        values.append(activation.astype(np.float32))
    if not contexts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(contexts), np.concatenate(tokens), np.concatenate(values)


def feature_contexts(store: Store, sae: Sae, feature: int) -> FeatureContexts:
    """Every context of a feature; all arrays empty (offsets [0]) when it never fires."""
    context, token, activation = feature_activations(store, sae, feature)
    if len(context) == 0:
        zero = np.zeros(1, np.int64)
        return FeatureContexts(context, activation, token, zero, token, activation)
    starts = np.flatnonzero(np.concatenate(([True], context[1:] != context[:-1])))
    offsets = np.append(starts, len(context))
    peak = np.maximum.reduceat(activation, starts)
    # Of the tokens that reach their context's maximum, the first of each context.
    reaching = np.flatnonzero(activation == np.repeat(peak, np.diff(offsets)))
    first = reaching[np.searchsorted(reaching, starts)]
    return FeatureContexts(context[starts], peak, token[first], offsets, token, activation)
