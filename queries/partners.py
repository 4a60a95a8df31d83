"""How often one feature is active together with each feature of an SAE."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from featuredb.store.by_token import TokenFeatures
from featuredb.store.positions import context_of
from featuredb.store.recorded import CommonTokens, documents_of, members
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.coactivation import fired

Int64 = npt.NDArray[np.int64]

_FLAGS = 1 << 25
"""Bytes of the table that says which features each document has, some documents at a time."""


class Counts:
    """How often a feature, A, and each feature of an SAE, B, are active, alone and together.

    Units are the common tokens of the two SAEs, or the documents that have any. n, a: how many
    there are, and how many A is active in. b, both: of each B, and of B with A, int64 [d_sae].
    """

    def __init__(
        self, store: Store, own: Sae, feature: int, other: Sae, common: CommonTokens, unit: str
    ) -> None:
        keys = fired(store, own, feature, common).keys
        if unit == "token":
            self.n, self.a = common.tokens, len(keys)
            self.both = _on_tokens(store, other, keys)
        else:
            documents = documents_of(store, keys)
            self.n, self.a = common.documents, len(documents)
            self.both = _in_documents(store, other, _contexts_of(store, documents), common)
        self.b = _alone(store, own, other, common, unit)

    def of(self, features: Int64) -> tuple[Int64, Int64, Int64, Int64]:
        """(both, a, b, n) of some features, all [m]."""
        m = len(features)
        return self.both[features], np.full(m, self.a), self.b[features], np.full(m, self.n)


def _on_tokens(store: Store, sae: Sae, keys: Int64) -> Int64:
    """On how many of the tokens at `keys`, ascending, each feature is active, int64 [d_sae]."""
    contexts = np.unique(context_of(keys, store.snapshot.position_bits))
    counts = np.zeros(sae.d_sae, np.int64)
    for segment in store.by_token(sae):
        for piece in segment.features_at(contexts, lambda some: members(some, keys)):
            counts += np.bincount(piece.feature_id, minlength=sae.d_sae)
    return counts


def _in_documents(store: Store, sae: Sae, contexts: Int64, common: CommonTokens) -> Int64:
    """In how many documents each feature is active on a common token, int64 [d_sae].

    contexts: those of the documents, ascending, and no others.
    """
    bits = store.snapshot.position_bits
    counts = np.zeros(sae.d_sae, np.int64)
    last = -1
    last_has = np.zeros(sae.d_sae, bool)
    inside = np.zeros(int(contexts[-1]) + 2 if len(contexts) else 1, bool)
    inside[contexts] = True

    def chosen(keys: Int64) -> npt.NDArray[np.bool_]:
        wanted: npt.NDArray[np.bool_] = inside[np.minimum(keys >> bits, len(inside) - 1)]
        if not common.same:
            wanted[wanted] = common.kept(keys[wanted])
        return wanted

    for segment in store.by_token(sae):
        for document, features in _by_document(store, segment.features_at(contexts, chosen), sae):
            # A document's tokens may continue from the piece before.
            if document[0] == last:
                features[0] |= last_has
                counts -= last_has
            counts += np.count_nonzero(features, axis=0)
            last, last_has = int(document[-1]), features[-1]
    return counts


def _by_document(
    store: Store, pieces: Iterator[TokenFeatures], sae: Sae
) -> Iterator[tuple[Int64, npt.NDArray[np.bool_]]]:
    """(document_id [m] ascending, whether it has each feature [m, d_sae]), piece by piece."""
    at_once = max(1, _FLAGS // sae.d_sae)
    for piece in pieces:
        document = store.texts.documents_of(context_of(piece.keys, store.snapshot.position_bits))
        new = np.concatenate(([True], document[1:] != document[:-1]))
        starts = np.append(np.flatnonzero(new), len(document))
        firsts = np.concatenate(([0], np.cumsum(piece.counts)))[starts]
        names = document[starts[:-1]]
        for low in range(0, len(names), at_once):
            high = min(len(names), low + at_once)
            features = np.zeros((high - low, sae.d_sae), bool)
            row = np.repeat(np.arange(high - low), np.diff(firsts[low : high + 1]))
            features[row, piece.feature_id[firsts[low] : firsts[high]]] = True
            yield names[low:high], features


def _alone(store: Store, own: Sae, other: Sae, common: CommonTokens, unit: str) -> Int64:
    """In how many common units each feature of `other` is active, int64 [d_sae].

    Where the two SAEs recorded the same tokens these are its statistics. Where not, its whole
    by-token copy is read, once per pair of SAEs and store.
    """
    if common.same:
        known = store.features
        return known.count(other) if unit == "token" else known.documents(other)
    kept = _COUNTED.setdefault(store, {})
    key = own.name, other.name, unit
    if key not in kept:
        contexts = np.concatenate(
            [np.empty(0, np.int64), *(np.arange(*each) for each in common.ranges)]
        )
        if unit == "document":
            kept[key] = _in_documents(store, other, contexts, common)
        else:
            counts = np.zeros(other.d_sae, np.int64)
            for segment in store.by_token(other):
                for piece in segment.features_at(contexts, common.kept):
                    counts += np.bincount(piece.feature_id, minlength=other.d_sae)
            kept[key] = counts
    return kept[key]


_COUNTED: WeakKeyDictionary[Store, dict[tuple[str, str, str], Int64]] = WeakKeyDictionary()
"""What `_alone` counted, by the names of the two SAEs and the unit."""


def _contexts_of(store: Store, documents: Int64) -> Int64:
    """The contexts of some documents, int64 ascending."""
    contexts = [np.empty(0, np.int64)]
    for corpus in store.snapshot.corpora:
        rows = np.flatnonzero(np.isin(store.texts.index(corpus)[:-1, 0], documents))
        contexts.append(rows + corpus.first_context)
    return np.concatenate(contexts)
