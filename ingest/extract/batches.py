"""Cut contexts into batches by a token budget, sorted by length to reduce padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Batch(NamedTuple):
    """Contexts run together.

    contexts: their rows in the partition, int64 [b]. lengths: int64 [b]. token_ids: int64
    [b, max(lengths)], padded on the right with 0.
    """

    contexts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]


def cut(lengths: npt.NDArray[np.int64], budget: int) -> list[npt.NDArray[np.int64]]:
    """The rows of each batch: contexts by length, longest first, ties by row.

    A batch has at most `budget` padded tokens, except that a longer context is a separate batch.
    Longest first, so that a batch too big for the device's memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, budget // longest)
        batches.append(order[start:end])
        start = end
    return batches


def batches(
    tokens: npt.NDArray[np.unsignedinteger],
    starts: npt.NDArray[np.int64],
    budget: int,
) -> Iterator[Batch]:
    """The batches of consecutive contexts.

    tokens: token ids of the corpus. starts: int64 [n + 1], context i is tokens starts[i] to
    starts[i+1].
    """
    lengths = np.diff(starts)
    for rows in cut(lengths, budget):
        batch_lengths = lengths[rows]
        columns = np.arange(batch_lengths.max())
        real = columns[None, :] < batch_lengths[:, None]
        at = starts[rows][:, None] + columns[None, :]
        ids = np.where(real, tokens[np.where(real, at, 0)], 0).astype(np.int64)
        yield Batch(rows, batch_lengths, ids)
