"""Which tokens an SAE recorded, and which two SAEs recorded both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from featuredb.store.corpora import Texts
from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.positions import context_of, pack, token_of
from featuredb.store.snapshot import Corpus, Sae, Snapshot
from featuredb.store.store import Store

Int64 = npt.NDArray[np.int64]

BLOCK = 1 << 22
"""Tokens of a corpus looked at together."""


def recordable(
    texts: Texts, snapshot: Snapshot, corpus: Corpus, rows: slice, excluded: Sequence[int]
) -> Int64:
    """Tokens of each context that may be recorded, int64: no BOS, no excluded ones. Sinks count.

    rows: of the corpus. excluded: token ids.
    """
    starts = texts.index(corpus)[rows.start : rows.stop + 1, 1]
    lengths = np.diff(starts)
    skips = corpus.bos_token_id is not None and not snapshot.recording.keep_bos
    if excluded and len(lengths):
        left_out = np.isin(texts.tokens(corpus)[starts[0] : starts[-1]], excluded)
        if skips:
            left_out[starts[:-1] - starts[0]] = False  # counted once, as a BOS
        before = np.concatenate(([0], np.cumsum(left_out)))[starts - starts[0]]
        lengths = lengths - np.diff(before)
    result: Int64 = lengths - int(skips)
    return result


class CommonTokens:
    """The tokens that two SAEs, or one, recorded both. A question about both is about these.

    Not among them: BOS where it is not recorded, what is a sink for either, tokens that either
    excludes, contexts that only one has read. A token of overlapping windows counts in each.

    A *key* is ``context_id << position_bits | token_index``, int64.
    """

    def __init__(self, store: Store, one: Sae, other: Sae) -> None:
        self._store = store
        self._bits = store.snapshot.position_bits
        self._saes = {one.name: one, other.name: other}
        ranges = [ranges_read(store.snapshot, name) for name in self._saes]
        self.ranges = ranges[0] if len(ranges) == 1 else overlap(*ranges)
        """First and end of the contexts that both have read, ascending."""
        self._sinks = {name: _sink_keys(store, name) for name in self._saes}
        self.same = len(self._saes) == 1 or (
            ranges[0] == ranges[1]
            and one.excluded_tokens == other.excluded_tokens
            and np.array_equal(self._sinks[one.name], self._sinks[other.name])
        )
        """Whether each has recorded just what the other has."""

    @cached_property
    def excluded(self) -> tuple[int, ...]:
        """Token ids that either excludes, ascending."""
        return tuple(sorted({t for sae in self._saes.values() for t in sae.excluded_tokens}))

    def kept(self, keys: Int64) -> npt.NDArray[np.bool_]:
        """Which of these keys, ascending and each recorded by one of the two, are common tokens."""
        if self.same:
            return np.ones(len(keys), bool)
        edges = np.array(self.ranges, np.int64).reshape(-1)
        context = context_of(keys, self._bits)
        kept: npt.NDArray[np.bool_] = np.searchsorted(edges, context, side="right") % 2 == 1
        for sinks in self._sinks.values():
            kept &= ~members(keys, sinks)
        if self.excluded:
            kept[kept] = ~np.isin(token_ids_at(self._store, keys[kept]), self.excluded)
        return kept

    @cached_property
    def tokens(self) -> int:
        """How many there are."""
        return int(self.per_context[2].sum())

    def counts(self) -> Int64:
        """How often each token id is among them, int64 [vocab_size]. Reads the corpora's tokens."""
        snapshot, texts = self._store.snapshot, self._store.texts
        counts = np.zeros(snapshot.model.vocab_size, np.int64)
        for corpus, rows in self._pieces():
            starts, tokens = (
                texts.index(corpus)[rows.start : rows.stop + 1, 1],
                texts.tokens(corpus),
            )
            for first in range(starts[0], starts[-1], BLOCK):
                block = tokens[first : min(first + BLOCK, starts[-1])]
                counts += np.bincount(block, minlength=len(counts))
            if corpus.bos_token_id is not None and not snapshot.recording.keep_bos:
                counts[corpus.bos_token_id] -= len(starts) - 1  # each context begins with it
        sinks = np.unique(np.concatenate(list(self._sinks.values())))
        edges = np.array(self.ranges, np.int64).reshape(-1)
        inside = np.searchsorted(edges, context_of(sinks, self._bits), side="right") % 2 == 1
        counts -= np.bincount(token_ids_at(self._store, sinks[inside]), minlength=len(counts))
        counts[list(self.excluded)] = 0
        return counts

    def _pieces(self) -> Iterator[tuple[Corpus, slice]]:
        """The rows of each corpus that both have read."""
        for first, end in self.ranges:
            for corpus in self._store.snapshot.corpora:
                low = max(first, corpus.first_context) - corpus.first_context
                high = min(end, corpus.first_context + corpus.n_contexts) - corpus.first_context
                if low < high:
                    yield corpus, slice(low, high)

    @cached_property
    def documents(self) -> int:
        """How many documents have at least one."""
        _, document, tokens = self.per_context
        return len(_distinct(document[tokens > 0]))

    @property
    def keys(self) -> Int64:
        """All of them, ascending: eight bytes a token."""
        texts = self._store.texts
        sinks = np.unique(np.concatenate(list(self._sinks.values())))
        found = [np.empty(0, np.int64)]
        contexts = self.per_context[0]
        for corpus in self._store.snapshot.corpora:
            rows = contexts - corpus.first_context
            rows = rows[(rows >= 0) & (rows < corpus.n_contexts)]
            sizes = np.diff(texts.index(corpus)[:, 1])[rows]
            firsts = np.cumsum(sizes) - sizes
            token = np.arange(sizes.sum()) - np.repeat(firsts, sizes)
            keys = pack(np.repeat(rows + corpus.first_context, sizes), token, self._bits)
            if corpus.bos_token_id is not None and not self._store.snapshot.recording.keep_bos:
                keys = keys[token > 0]
            if self.excluded:
                keys = keys[~np.isin(token_ids_at(self._store, keys), self.excluded)]
            found.append(keys[~members(keys, sinks)] if len(sinks) else keys)
        return np.concatenate(found)

    @cached_property
    def per_context(self) -> tuple[Int64, Int64, Int64]:
        """(context_id, document_id, common tokens) of each context both have read, int64 [c]."""
        texts, snapshot = self._store.texts, self._store.snapshot
        sinks = np.unique(np.concatenate(list(self._sinks.values())))
        contexts, documents, counts = ([np.empty(0, np.int64)] for _ in range(3))
        for corpus, rows in self._pieces():
            counted = recordable(texts, snapshot, corpus, rows, self.excluded)
            base = corpus.first_context + rows.start
            edges = [pack(base, 0, self._bits), pack(base + len(counted), 0, self._bits)]
            inside = sinks[slice(*np.searchsorted(sinks, edges))]
            if self.excluded:
                inside = inside[~np.isin(token_ids_at(self._store, inside), self.excluded)]
            at = context_of(inside, self._bits) - base
            counts.append(counted - np.bincount(at, minlength=len(counted)))
            contexts.append(np.arange(base, base + len(counted)))
            documents.append(texts.index(corpus)[rows, 0])
        return np.concatenate(contexts), np.concatenate(documents), np.concatenate(counts)


def recorded_by(store: Store, sae: Sae, keys: Int64) -> npt.NDArray[np.bool_]:
    """Which of these keys, ascending and none of a BOS, an SAE recorded: all but its sinks, tokens
    that it excludes, and contexts that it has not read."""
    edges = np.array(ranges_read(store.snapshot, sae.name), np.int64).reshape(-1)
    context = context_of(keys, store.snapshot.position_bits)
    kept: npt.NDArray[np.bool_] = np.searchsorted(edges, context, side="right") % 2 == 1
    kept &= ~members(keys, _sink_keys(store, sae.name))
    if sae.excluded_tokens:
        kept &= ~np.isin(token_ids_at(store, keys), sae.excluded_tokens)
    return kept


def members(keys: Int64, others: Int64) -> npt.NDArray[np.bool_]:
    """Which of `keys` are among `others`. Both ascend, without repetitions."""
    if len(keys) < len(others) // 16:
        at = np.searchsorted(others, keys)
        result: npt.NDArray[np.bool_] = others[np.minimum(at, len(others) - 1)] == keys
        return result
    if len(others) < len(keys) // 16:
        at = np.searchsorted(keys, others)
        at = at[at < len(keys)]
        result = np.zeros(len(keys), bool)
        result[at[keys[at] == others[: len(at)]]] = True
        return result
    return np.isin(keys, others, assume_unique=True)


def documents_of(store: Store, keys: Int64) -> Int64:
    """The distinct documents of keys, which ascend, int64 ascending."""
    contexts = _distinct(context_of(keys, store.snapshot.position_bits))
    return _distinct(store.texts.documents_of(contexts))


def token_ids_at(store: Store, keys: Int64) -> npt.NDArray[np.unsignedinteger]:
    """The token at each key."""
    bits = store.snapshot.position_bits
    return store.texts.tokens_at(context_of(keys, bits), token_of(keys, bits))


def _distinct(ascending: Int64) -> Int64:
    """The values without repetitions."""
    if len(ascending) == 0:
        return ascending
    return ascending[np.concatenate(([True], ascending[1:] != ascending[:-1]))]


def ranges_read(snapshot: Snapshot, sae: str) -> list[tuple[int, int]]:
    """First and end of the contexts that an SAE has read, ascending, none touching the next."""
    ranges: list[tuple[int, int]] = []
    for segment in snapshot.segments_of(sae):
        first, end = segment.first_context, segment.end_context
        if ranges and ranges[-1][1] == first:
            first = ranges.pop()[0]
        if first < end:
            ranges.append((first, end))
    return ranges


def overlap(
    one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """What is in a range of both, in pieces between all edges."""
    edges = sorted({edge for each in (*one, *other) for edge in each})
    return [
        (low, high)
        for low, high in pairwise(edges)
        if all(any(f <= low and high <= e for f, e in ranges) for ranges in (one, other))
    ]


def _sink_keys(store: Store, sae: str) -> Int64:
    """The positions left out for their norm, ascending."""
    pieces = [np.empty(0, np.int64)]
    for segment in store.snapshot.segments_of(sae):
        if segment.sinks.rows:
            table = store.files.read(segment.sinks.path, columns=["context_id", "token_index"])
            context, index = (chunk_to_numpy(c).astype(np.int64) for c in table.columns)
            pieces.append(pack(context, index, store.snapshot.position_bits))
    return np.sort(np.concatenate(pieces))
