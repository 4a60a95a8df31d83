"""Probabilities of next tokens before and after a change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from featuredb.store import schemas

LEAST_PROBABILITY = 1e-4
"""Tokens that never reach it are not listed: their factors are large and mean little."""

ROWS = 32
"""Distributions compared at once, so that they stay in the caches."""


class TokenChanges:
    """Mean probabilities of next tokens before and after a change, a row per feature."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        self._before = torch.zeros(rows, vocabulary)
        self._after = torch.zeros(rows, vocabulary)
        self._times = 0

    def add(self, logits: Tensor, before: Tensor) -> Tensor:
        """Count logits [n, vocab] beside log probabilities before, [vocab] or [n, vocab].

        Returns:
            KL(before ‖ after) of each row, nats, float32 [n].
        """
        self._times += 1
        divergence = torch.empty(len(logits))
        for start in range(0, len(logits), ROWS):
            block = slice(start, start + ROWS)
            after = logits[block].float().log_softmax(dim=1)
            was = before if before.ndim == 1 else before[block]
            share = was.exp()
            divergence[block] = (share * (was - after)).sum(dim=-1).cpu()
            self._before[block] += share.cpu()
            self._after[block] += after.exp().cpu()
        return divergence.clamp_min(0)

    def pool(self, before: Tensor, after: Tensor) -> None:
        """Count log probabilities [m, vocab] at m places, for the one row there is."""
        self._times += len(before)
        self._before[0] += before.exp().sum(dim=0).cpu()
        self._after[0] += after.exp().sum(dim=0).cpu()

    def listed(
        self, *, raised: bool, known: npt.NDArray[np.bool_], texts: Sequence[str]
    ) -> pa.ListArray:
        """list<TOKEN_CHANGE> [n]: the tokens whose mean probability rises, or falls, by the
        largest factor, as its logarithm. Only tokens that had, or get, `LEAST_PROBABILITY`."""
        by = (self._after / self._before).log()
        part, reached = (by, self._after) if raised else (-by, self._before)
        seen = (reached >= LEAST_PROBABILITY * self._times) & torch.from_numpy(known)
        k = min(schemas.TOP_TOKENS, part.shape[1])
        values, chosen = part.masked_fill(~seen, -torch.inf).topk(k, dim=1)
        keep = values > 0
        names = pa.array([texts[i] for i in chosen[keep].tolist()], pa.string())
        changes = pa.array(by.gather(1, chosen)[keep].numpy())
        flat = pa.StructArray.from_arrays([names, changes], fields=list(schemas.TOKEN_CHANGE))
        offsets = np.concatenate(([0], keep.sum(dim=1).cumsum(0).numpy())).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), flat)
