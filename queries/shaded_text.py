"""One feature's activations along a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from featuredb.render.view import Heading, Passage, Passages, View
from featuredb.store.names import parse_feature
from featuredb.store.store import Store
from queries.answers import FeatureAnswer, of_feature
from queries.specificity import Active


@dataclass(frozen=True, repr=False)
class ShadedText(FeatureAnswer):
    """The tokens of a text and a feature's activation on each, 0 where it does not fire.

    Columns: sae string, feature_id i64, token_index i32, token string, activation f32. In order.
    """

    kind: ClassVar[str] = "shaded_text"

    scale: float
    """The feature's largest stored activation, or the text's if that is larger."""

    def view(self) -> View:
        """The text, shaded."""
        activations = self.table.column("activation").to_pylist()
        firing = sum(value != 0 for value in activations)
        peak = int(np.argmax(activations)) if firing else None
        passage = Passage(self.table.column("token").to_pylist(), activations, peak)
        ending = f" · fires on {firing} of {len(activations)} tokens"
        return View([[Heading("", self.titled, ending), Passages([passage], self.scale)]])


def shaded_text(
    store: Store, active: Sequence[Active], tokens: list[str], feature: Any
) -> ShadedText:
    """See `queries.fires.Firing.shaded`."""
    sae, number = parse_feature(store.snapshot, feature)
    values = np.zeros(len(tokens), np.float32)
    for each in active:
        if each.sae.name == sae.name:
            inside = each.feature_id == number
            values[each.token_index[inside]] = each.activation[inside]
    named = of_feature(sae.name, number, len(tokens))
    table = pa.table(
        {
            "sae": named[0],
            "feature_id": named[1],
            "token_index": pa.array(range(len(tokens)), pa.int32()),
            "token": pa.array(tokens, pa.string()),
            "activation": pa.array(values, pa.float32()),
        }
    )
    largest = np.nan_to_num(store.features.max_activation(sae)[number])
    scale = float(max(largest, values.max(initial=0))) or 1.0
    label = store.labels.preferred(sae, number)
    return ShadedText(table, sae.name, number, scale, label=label)
