"""What activations are pooled over: documents, contexts, or turns of chats.

A **turn** is a run of a document's tokens that have one role, in one window where windows overlap.
Text that the chat's template writes is no turn. Turns are numbered from 0 through the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.store.positions import context_of, token_of
from featuredb.store.recorded import CommonTokens
from featuredb.store.snapshot import Corpus, Sae
from featuredb.store.store import Store
from queries.arguments import check_choice
from queries.tokens_of import TokensOf

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

UNITS = ("document", "context", "turn")
_TEMPLATE = "template"


class Units:
    """The units of one kind. They have places from 0 to before `n`, and ids.

    ids: document_id, context_id or the turn's number of each place, int64 [n] ascending. partial:
    whether there are tokens of no unit. on: the tokens that they have, None for all.
    """

    def __init__(self, store: Store, kind: str, on: TokensOf | None = None) -> None:
        self._store = store
        self.kind = kind
        self.on = on
        self.partial = on is not None or kind == "turn"

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.ids)

    @cached_property
    def ids(self) -> Int64:
        """See the class."""
        corpora = self._store.snapshot.corpora
        if self.kind == "document":
            ranges = [(c.first_document, c.n_documents) for c in corpora]
        else:
            ranges = [(c.first_context, c.n_contexts) for c in corpora]
        return np.concatenate([np.empty(0, np.int64), *(np.arange(f, f + n) for f, n in ranges)])

    @property
    def source(self) -> str:
        """The tables that a condition on units may name columns of, in SQL."""
        if self.kind == "document":
            return "documents"
        return "contexts JOIN documents USING (document_id)"

    @property
    def id_column(self) -> str:
        """The column of `source` that has the ids, in SQL."""
        return f"{self.kind}s.{self.kind}_id"

    @property
    def columns(self) -> dict[str, pa.Array]:
        """What names each unit in answers."""
        return {f"{self.kind}_id": pa.array(self.ids, pa.int64())}

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Tables of `source` that are not in the catalog."""
        return {}

    def of(
        self, context: npt.NDArray[np.integer], token: Callable[[], npt.NDArray[np.integer]]
    ) -> Int32:
        """The place of the unit of each token, int32 [n], -1 of none.

        context: ids [n]. token: gives the tokens' indexes [n].
        """
        units: Int32 = self._of_context[context]
        return units if self.on is None else self._kept(units, context, token())

    def _kept(
        self, units: Int32, context: npt.NDArray[np.integer], token: npt.NDArray[np.integer]
    ) -> Int32:
        """The units of those of `on`, -1 of others."""
        if self.on is not None:
            key = context.astype(np.int64) << self._store.snapshot.position_bits | token
            units[~self.on.has(key)] = -1
        return units

    def documents(self) -> Int64:
        """The document of each unit, int64 [n]."""
        if self.kind == "document":
            return self.ids
        return self._store.texts.documents_of(self.ids)

    def lengths(self, sae: Sae) -> npt.NDArray[np.float64]:
        """Recorded tokens of each unit, [n]."""
        recorded = CommonTokens(self._store, sae, sae)
        if not self.partial:
            context, _, tokens = recorded.per_context
            place = self._of_context[context]
            return np.bincount(place, tokens, minlength=self.n).astype(np.float64)
        keys = recorded.keys if self.on is None else self.on.keys(sae)
        bits = self._store.snapshot.position_bits
        place = self.of(context_of(keys, bits), lambda: token_of(keys, bits))
        return np.bincount(place[place >= 0], minlength=self.n).astype(np.float64)

    @cached_property
    def _of_context(self) -> Int32:
        """The unit of each context, int32 [last context + 1]."""
        corpora = self._store.snapshot.corpora
        end = max((c.first_context + c.n_contexts for c in corpora), default=0)
        units = np.full(end, -1, np.int32)
        for corpus in corpora:
            contexts = np.arange(corpus.first_context, corpus.first_context + corpus.n_contexts)
            ids = contexts
            if self.kind == "document":
                ids = np.asarray(self._store.texts.index(corpus)[:-1, 0])
            units[contexts] = np.searchsorted(self.ids, ids)
        return units


class Turns(Units):
    """Turns of chats. `first` and `end`: keys of each turn's tokens, int64 [n]."""

    def __init__(self, store: Store, on: TokensOf | None = None) -> None:
        super().__init__(store, "turn", on)
        if all(corpus.roles is None for corpus in store.snapshot.corpora):
            raise QueryError("no corpus here has turns: chats do, ingested with --messages-column")
        found = [turns for c in store.snapshot.corpora for turns in self._turns(c)]
        self._first = np.array([f for f, _, _ in found], np.int64)
        self._end = np.array([e for _, e, _ in found], np.int64)
        self._roles = [role for _, _, role in found]

    @cached_property
    def ids(self) -> Int64:
        """See `Units`."""
        return np.arange(len(self._first))

    @property
    def source(self) -> str:
        """See `Units`."""
        return "turns JOIN documents USING (document_id)"

    @property
    def columns(self) -> dict[str, pa.Array]:
        """See `Units`. turn_index: from 0 in its document."""
        document = self.documents()
        firsts = np.searchsorted(document, document)
        return {
            "turn_id": pa.array(self.ids),
            "document_id": pa.array(document),
            "turn_index": pa.array(self.ids - firsts),
            "role": pa.array(self._roles, pa.string()),
        }

    @property
    def tables(self) -> dict[str, pa.Table]:
        """``turns``, of `columns`."""
        return {"turns": pa.table(self.columns)}

    def of(
        self, context: npt.NDArray[np.integer], token: Callable[[], npt.NDArray[np.integer]]
    ) -> Int32:
        """See `Units`."""
        bits, index = self._store.snapshot.position_bits, token()
        key = context.astype(np.int64) << bits | index
        place = np.searchsorted(self._first, key, side="right") - 1
        place[(place >= 0) & (key >= self._end[place])] = -1
        return self._kept(place.astype(np.int32), context, index)

    def documents(self) -> Int64:
        """See `Units`."""
        bits = self._store.snapshot.position_bits
        return self._store.texts.documents_of(context_of(self._first, bits))

    def _turns(self, corpus: Corpus) -> Iterator[tuple[int, int, str]]:
        """First key, end and role of each turn of a corpus."""
        if corpus.roles is None:
            return
        bits = self._store.snapshot.position_bits
        index = np.asarray(self._store.texts.index(corpus))
        roles = np.array(self._store.location.flat(corpus.roles.path, np.uint8))
        starts = index[:-1, 1]
        context = np.repeat(np.arange(corpus.n_contexts), np.diff(index[:, 1]))
        key = (context + corpus.first_context) << bits | (np.arange(len(roles)) - starts[context])
        if corpus.bos_token_id is not None:
            # A window's BOS is no text of the template: what it interrupts goes on.
            key, roles, context = (np.delete(x, starts) for x in (key, roles, context))
        document = index[context, 0]
        new = (roles[1:] != roles[:-1]) | (document[1:] != document[:-1])
        if corpus.stride is not None:
            new |= context[1:] != context[:-1]
        edges = np.concatenate(([0], np.flatnonzero(new) + 1, [len(roles)]))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if low < high and (role := corpus.role_names[roles[low]]) != _TEMPLATE:
                yield int(key[low]), int(key[high - 1]) + 1, role


def units_of(store: Store, unit: str, on: TokensOf | None = None) -> Units:
    """The units of a kind. Raises `QueryError` where there is no such kind, or no turns.

    on: the tokens that they have, and no others.
    """
    check_choice("unit", unit, UNITS)
    return Turns(store, on) if unit == "turn" else Units(store, unit, on)
