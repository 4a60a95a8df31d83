"""The model's activations on the first tokens of a corpus, and how well an SAE explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ingest.extract.batches import batches
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import all_finite, forward, positions
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel
from ingest.sae import LoadedSae

_ROWS = 1_024


class SampleTokens(NamedTuple):
    """Contexts to look at.

    tokens: token ids. starts: int64 [n + 1], where each context begins. bos: the BOS that each
    begins with, None for none. skip_first: that BOS is not recorded.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    starts: npt.NDArray[np.int64]
    bos: int | None
    skip_first: bool

    def first(self, tokens: int) -> SampleTokens:
        """The contexts up to the one that reaches `tokens` tokens, at least one."""
        end = int(np.searchsorted(self.starts, tokens, side="left"))
        return self._replace(starts=self.starts[: max(2, end + 1)])

    def without_bos(self) -> SampleTokens:
        """The same contexts without their BOS."""
        keep = np.ones(int(self.starts[-1]), bool)
        keep[self.starts[:-1]] = False
        starts = self.starts - np.arange(len(self.starts))
        return SampleTokens(np.asarray(self.tokens[: len(keep)])[keep], starts, None, False)

    def with_bos(self, bos: int) -> SampleTokens:
        """The same contexts with a BOS in front of each."""
        ids = np.asarray(self.tokens[: int(self.starts[-1])]).astype(np.int64)
        tokens = np.insert(ids, self.starts[:-1], bos).astype(np.uint32)
        return SampleTokens(tokens, self.starts + np.arange(len(self.starts)), bos, True)


class States(NamedTuple):
    """Hidden states at one hook, at the recorded positions.

    x: float32 [n, width]. first: bool [n], positions that begin a context. token: int64 [n], the
    token at each.
    """

    x: Tensor
    first: Tensor
    token: Tensor

    def without(self, excluded: Sequence[int]) -> States:
        """The positions of other tokens."""
        if not excluded:
            return self
        included = ~torch.isin(self.token, torch.tensor(excluded, device=self.token.device))
        return States(self.x[included], self.first[included], self.token[included])

    def ordinary(self, sink_threshold: float | None) -> tuple[Tensor, float]:
        """The positions [n] that are not sinks, and the median norm that decides it."""
        norms = self.x.norm(dim=1)
        median = float(norms.median()) if len(norms) else 0.0
        if sink_threshold is None:
            return torch.ones_like(norms, dtype=torch.bool), median
        return norms <= sink_threshold * median, median


class Explained(NamedTuple):
    """How well an SAE explains.

    variance_explained: 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖². l0: mean active features. dead_share: features
    never active. counts: int64 [d_sae], tokens on which each feature was active.
    """

    variance_explained: float
    l0: float
    dead_share: float
    counts: npt.NDArray[np.int64]


@torch.inference_mode()
def read_states(
    model: LoadedModel, hooks: Sequence[HookPoint], sample: SampleTokens, memory: DeviceMemory
) -> dict[str, States]:
    """States by hook name. Raises `ModelError` if they are NaN or infinite."""
    gathered: dict[str, list[Tensor]] = {hook.name: [] for hook in hooks}
    firsts: list[Tensor] = []
    tokens: list[Tensor] = []
    for batch in batches(sample.tokens, sample.starts, memory.batch_tokens):
        for piece, residuals in memory.run(lambda b: forward(model, hooks, b), batch):
            row, index = positions(piece.lengths, sample.skip_first)
            flat = torch.from_numpy(row * piece.token_ids.shape[1] + index)
            firsts.append(torch.from_numpy(index == int(sample.skip_first)))
            tokens.append(torch.from_numpy(piece.token_ids[row, index].astype(np.int64)))
            for name, residual in residuals.items():
                recorded = residual.reshape(-1, residual.shape[-1])[
                    flat.to(residual.device)
                ].float()
                all_finite(recorded, name)
                gathered[name].append(recorded)
    first, token = torch.cat(firsts), torch.cat(tokens)
    return {
        name: States(torch.cat(pieces), *(t.to(pieces[0].device) for t in (first, token)))
        for name, pieces in gathered.items()
    }


@torch.inference_mode()
def explain(sae: LoadedSae, x: Tensor, y: Tensor | None, *, top: int | None = None) -> Explained:
    """Compare decode(encode(x)) with y. x [n, d_in], y [n, d_out] or None to compare nothing.

    top: only so many of each token's activations, the largest.
    """
    counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
    squared = 0.0
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        acts = sae.encode(part)
        if top is not None:
            largest = acts.topk(min(top, sae.d_sae), dim=1)
            acts = torch.zeros_like(acts).scatter_(1, largest.indices, largest.values)
        fires = acts != 0
        counts += fires.sum(dim=0)
        if y is not None:
            rebuilt = sae.decode(acts, part)
            squared += float((y[start : start + _ROWS].double() - rebuilt.double()).square().sum())
    return Explained(
        0.0 if y is None else share_explained(squared, y),
        float(counts.sum()) / max(1, len(x)),
        1.0 - float((counts > 0).float().mean()),
        counts.cpu().numpy(),
    )


def share_explained(squared: float, y: Tensor) -> float:
    """1 - squared / Σ‖y - ȳ‖², with `squared` the error of a reconstruction of y [n, d]."""
    variance = float((y.double() - y.double().mean(dim=0)).square().sum()) if len(y) else 0.0
    return 1.0 - squared / variance if variance else 0.0
