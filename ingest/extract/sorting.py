"""Sort a partition's activations both ways by counting, compiled by numba.

How often each feature fires says where its entries go, so a single pass over the tokens puts them
there. Then a single pass over the features, the most frequent first, appends each to its tokens'
lists. Nothing is compared, and both passes release the GIL.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK = 16_384
"""Tokens, measured: 17 ns an activation, 30 with all at once, 25 with 4,096."""


class TokenEntries(NamedTuple):
    """Tokens with any active feature, by position, all [t].

    position: uint32 ascending. start, length: int64, which of the entries are each token's.
    """

    position: npt.NDArray[np.uint32]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


def tokens_of(position: npt.NDArray[np.uint32]) -> TokenEntries:
    """The tokens of entries [n], given that those of each token are adjacent.

    Contexts in a batch are ordered by length, so tokens are out of order.
    """
    if len(position) == 0:
        none = np.empty(0, np.int64)
        return TokenEntries(position, none, none)
    start = np.flatnonzero(np.concatenate(([True], position[1:] != position[:-1])))
    length = np.diff(np.append(start, len(position)))
    order = np.argsort(position[start], kind="stable")
    return TokenEntries(position[start][order], start[order], length[order])


@nb.njit(cache=True, nogil=True)
def by_feature(
    tokens: TokenEntries, feature: Array, bits: Array, directory: Array
) -> tuple[Array, Array]:
    """The entries sorted by (feature, position): the token's number uint32 [n] and bits [n].

    feature, bits: [n], as tokens list them, features ascending within a token. directory: int64
    [d_sae + 1], where each feature's entries begin.
    """
    place = directory[:-1].copy()
    token = np.empty(len(feature), np.uint32)
    sorted_bits = np.empty_like(bits)
    for number in range(len(tokens.position)):
        first = tokens.start[number]
        for entry in range(first, first + tokens.length[number]):
            at = place[feature[entry]]
            place[feature[entry]] = at + 1
            token[at] = number
            sorted_bits[at] = bits[entry]
    return token, sorted_bits


@nb.njit(cache=True, nogil=True)
def by_token(
    token: Array, bits: Array, directory: Array, order: Array, offsets: Array
) -> tuple[Array, Array]:
    """The entries sorted by (token, rank): gaps uint32 [n] and bits [n].

    token, bits, directory: as of `by_feature`. order: the feature at each rank. offsets: int64
    [t + 1], where each token's entries begin. The first gap of a token is the rank itself.
    """
    place = offsets[:-1].copy()
    last = np.zeros(len(place), np.uint32)
    gaps = np.empty(len(token), np.uint32)
    sorted_bits = np.empty_like(bits)
    begin = directory[:-1].copy()
    # The lists of a block of tokens stay in cache while every feature appends to them.
    block = max(_BLOCK, len(order) // 4)
    for end in range(block, len(place) + block, block):
        for rank in range(len(order)):
            feature = order[rank]
            entry = begin[feature]
            while entry < directory[feature + 1] and token[entry] < end:
                number = token[entry]
                at = place[number]
                place[number] = at + 1
                gaps[at] = np.uint32(rank) - last[number]
                last[number] = rank
                sorted_bits[at] = bits[entry]
                entry += 1
            begin[feature] = entry
    return gaps, sorted_bits
