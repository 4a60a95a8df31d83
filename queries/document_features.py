"""A feature's activations pooled per document, per context, or per turn of a chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from featuredb.render.view import Heading, Records, View
from featuredb.store.names import parse_feature
from featuredb.store.positions import context_of, token_of
from featuredb.store.recorded import CommonTokens
from queries.answers import FeatureAnswer, of_feature
from queries.coactivation import fired
from queries.connection import Reader
from queries.question import Question
from queries.show import counted
from queries.units import units_of

_SHOWN = 20


@dataclass(frozen=True, repr=False)
class DocumentFeatures(FeatureAnswer):
    """Units in which a feature is active, by id: documents, contexts or turns.

    Columns: sae string, feature_id i64, then document_id, context_id or turn_id i64 (turns have
    document_id i64, turn_index i64 and role string besides), max_activation f32, sum_activation
    f64, n_tokens i64: activations in the unit. A token of overlapping windows counts in each.
    """

    kind: ClassVar[str] = "document_features"

    unit: str

    def view(self) -> View:
        """The units of the greatest maxima."""
        by_maximum = self.table.sort_by([("max_activation", "descending")])
        more = len(self) - _SHOWN
        shown = [Heading(f"… {more:,} more")] if more > 0 else []
        heading = Heading("feature ", self.titled, f" · in {counted(len(self), self.unit)}")
        return View([[heading], [Records(by_maximum.slice(0, _SHOWN)), *shown]])


def document_features(
    reader: Reader, feature: int | str, unit: str = "document"
) -> DocumentFeatures:
    """See `featuredb.Database.document_features`."""
    store = reader.store
    sae, number = parse_feature(store.snapshot, feature)
    units = units_of(store, unit)
    bits = store.snapshot.position_bits
    keys, activation = fired(
        store, sae, number, CommonTokens(store, sae, sae), with_activations=True
    )
    place = units.of(context_of(keys, bits), lambda: token_of(keys, bits))
    inside = place >= 0
    place, activation = place[inside], activation[inside]
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    found = place[starts]
    columns = dict(
        zip(("sae", "feature_id"), of_feature(sae.name, number, len(starts)), strict=True)
    )
    columns |= {name: column.take(pa.array(found)) for name, column in units.columns.items()}
    some = len(starts) > 0
    maxima = np.maximum.reduceat(activation, starts) if some else activation
    wide = activation.astype(np.float64)
    columns["max_activation"] = pa.array(maxima, pa.float32())
    columns["sum_activation"] = pa.array(np.add.reduceat(wide, starts) if some else wide)
    columns["n_tokens"] = pa.array(np.diff(starts, append=len(place)), pa.int64())
    label = store.labels.preferred(sae, number)
    return DocumentFeatures(
        pa.table(columns), sae=sae.name, feature_id=number, unit=unit, label=label
    )


QUESTION = Question("document_features", DocumentFeatures)
