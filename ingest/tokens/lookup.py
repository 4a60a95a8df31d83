"""Look up token ids and documents of positions in the stored corpora."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numba as nb
import numpy as np
import numpy.typing as npt

from featuredb.store.corpora import Texts
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft, Snapshot


class TokenLookup:
    """The tokens of all stored corpora. texts: the text of each token id."""

    def __init__(self, layout: Layout, draft: Draft | Snapshot) -> None:
        texts = Texts(layout.root, draft, ParquetFiles(layout.root))
        self.texts: Sequence[str] = texts.token_texts
        self._corpora = [
            (c.first_context, c.first_context + c.n_contexts, texts.index(c), texts.tokens(c))
            for c in draft.corpora
        ]

    @cached_property
    def copies(self) -> npt.NDArray[np.int32]:
        """For each context id from `first_context` on, the number of its text among those that
        several contexts have; -1 for a text of one context alone, and where there is no context.

        Texts are compared by a hash of 64 bits.
        """
        contexts = self._corpora[-1][1] - self.first_context if self._corpora else 0
        copies = np.full(contexts, -1, np.int32)
        hashes = np.zeros(contexts, np.uint64)
        present = np.zeros(contexts, bool)
        for first, end, index, tokens in self._corpora:
            rows_here = slice(first - self.first_context, end - self.first_context)
            _hash(np.asarray(index[:, 1]), tokens, hashes[rows_here])
            present[rows_here] = True
        _, which, counts = np.unique(hashes[present], return_inverse=True, return_counts=True)
        repeated = counts > 1
        copies[present] = np.where(repeated, np.cumsum(repeated) - 1, -1)[which]
        return copies

    @property
    def first_context(self) -> int:
        """The lowest context id."""
        return self._corpora[0][0] if self._corpora else 0

    def of(
        self, context_id: npt.NDArray[np.int64], token_index: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Token ids uint32 [n] and document ids int64 [n] of (context id, token index) pairs."""
        token = np.empty(len(context_id), np.uint32)
        document = np.empty(len(context_id), np.int64)
        for first, end, index, tokens in self._corpora:
            _fill(context_id, token_index, first, end, index, tokens, token, document)
        return token, document


@nb.njit(cache=True, nogil=True)
def _fill(
    context_id: npt.NDArray[np.int64],
    token_index: npt.NDArray[np.int32],
    first: int,
    end: int,
    index: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.unsignedinteger],
    token: npt.NDArray[np.uint32],
    document: npt.NDArray[np.int64],
) -> None:
    """Fill in the tokens of contexts first <= id < end."""
    for i in range(len(context_id)):
        if first <= context_id[i] < end:
            row = context_id[i] - first
            document[i] = index[row, 0]
            token[i] = tokens[index[row, 1] + token_index[i]]


@nb.njit(cache=True, nogil=True)
def _hash(
    starts: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.unsignedinteger],
    hashes: npt.NDArray[np.uint64],
) -> None:
    """A hash of the tokens of each context, FNV-1a over token ids."""
    for i in range(len(hashes)):
        mixed = np.uint64(0xCBF29CE484222325)
        for j in range(starts[i], starts[i + 1]):
            mixed = (mixed ^ np.uint64(tokens[j])) * np.uint64(0x100000001B3)
        hashes[i] = mixed
