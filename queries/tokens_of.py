"""The tokens on which one feature fires, as what other features' activations are narrowed to."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from featuredb.store.names import parse_feature
from featuredb.store.recorded import CommonTokens
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.coactivation import fired
from queries.specificity import Active, ActiveText

Int64 = npt.NDArray[np.int64]


class TokensOf:
    """The tokens on which a feature fires. name: the feature, as ``sae/1234``."""

    def __init__(self, store: Store, feature: int | str) -> None:
        self._store = store
        self._sae, self._number = parse_feature(store.snapshot, feature)
        self.name = f"{self._sae.name}/{self._number}"

    def keys(self, sae: Sae) -> Int64:
        """Those that `sae` recorded too, int64 ascending: see `CommonTokens`."""
        common = CommonTokens(self._store, self._sae, sae)
        return fired(self._store, self._sae, self._number, common).keys

    def has(self, keys: Int64) -> npt.NDArray[np.bool_]:
        """Which of these keys, in any order, are among them."""
        # A token beyond the last one has the flag at the end, which is false.
        flags = self._flags
        return flags[np.minimum(keys, len(flags) - 1)]

    def on_text(self, text: ActiveText) -> npt.NDArray[np.bool_]:
        """Which tokens of a text are among them."""
        fires = np.zeros(len(text.tokens), np.bool_)
        for each in text.active:
            if each.sae.name == self._sae.name:
                fires[each.token_index[each.feature_id == self._number]] = True
        return fires

    def of_text(self, text: ActiveText) -> ActiveText:
        """A text cut down to those of its tokens."""
        fires = self.on_text(text)
        place = np.cumsum(fires) - 1
        active = []
        for each in text.active:
            kept = fires[each.token_index]
            index, features, values = each.token_index[kept], each.feature_id[kept], each[3][kept]
            active.append(Active(each.sae, place[index], features, values))
        words = [word for word, inside in zip(text.tokens, fires, strict=True) if inside]
        return ActiveText(active, words)

    @cached_property
    def _flags(self) -> npt.NDArray[np.bool_]:
        """A byte for each possible token up to the last one, and one more."""
        keys = self.keys(self._sae)
        flags = np.zeros(int(keys[-1]) + 2 if len(keys) else 1, np.bool_)
        flags[keys] = True
        return flags
