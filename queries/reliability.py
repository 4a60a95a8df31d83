"""How reliably a feature fires on each of its tokens: how often, of how many occurrences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from featuredb.store.recorded import CommonTokens
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.activations import FeatureContexts

Int64 = npt.NDArray[np.int64]


def occurrences(
    store: Store, sae: Sae, contexts: FeatureContexts, top_tokens: Sequence[Mapping[str, Any]]
) -> list[int]:
    """How often each of a feature's top tokens was recorded for the SAE, firing or not.

    contexts: all of the feature's. Counted by token id: of several tokens with one text each has
    its own count. Reads the feature's activations and the corpora's tokens, the latter once per
    store.
    """
    counts = _recorded(store, sae)
    wanted = {entry["token"] for entry in top_tokens}
    if all(len(store.texts.ids_of(text)) == 1 for text in wanted):
        return [int(counts[store.texts.ids_of(entry["token"])[0]]) for entry in top_tokens]
    context = np.repeat(contexts.context_id, np.diff(contexts.offsets))
    ids = store.texts.tokens_at(context, contexts.token_index.astype(np.int64))
    fired = np.bincount(ids, minlength=len(counts))
    total = np.bincount(ids, contexts.activation.astype(np.float64), minlength=len(counts))
    # The list's order: by total activation, ties by token id.
    by_total = np.lexsort((np.arange(len(counts)), -total))
    matching: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number in by_total[: np.count_nonzero(fired)].tolist():
        matching[store.texts.token_texts[number], int(fired[number])].append(number)
    return [int(counts[matching[entry["token"], entry["count"]].pop(0)]) for entry in top_tokens]


def _recorded(store: Store, sae: Sae) -> Int64:
    kept = _KEPT.setdefault(store, {})
    if sae.name not in kept:
        kept[sae.name] = CommonTokens(store, sae, sae).counts()
    return kept[sae.name]


_KEPT: WeakKeyDictionary[Store, dict[str, Int64]] = WeakKeyDictionary()
"""How often each token id was recorded, by SAE."""
