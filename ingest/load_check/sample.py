"""The model's activations on a sample of corpora, and how well an SAE explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ingest.extract.batches import Batch, batches
from ingest.extract.device import DeviceMemory, in_pieces
from ingest.extract.forward import all_finite, forward, positions
from ingest.load_check.spread import Spread
from ingest.model.device import full_float32
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel
from ingest.sae import LoadedSae
from ingest.tokens.contexts import ranges

_ROWS = 1_024

_AT_ONCE = 1 << 20
"""Contexts to choose from at a time."""

Ints = npt.NDArray[np.int64]


class SampleTokens(NamedTuple):
    """Contexts to look at.

    tokens: token ids. starts: int64 [n + 1], where each context begins. bos: the BOS that each
    begins with, None for none. skip_first: that BOS is not recorded. corpora: the ids of the
    corpora that they are from. corpus: int64 [n], which of these each is from, None for the first.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    starts: Ints
    bos: int | None
    skip_first: bool
    corpora: tuple[str, ...] = ("0",)
    corpus: Ints | None = None

    @classmethod
    def of_all(cls, samples: Sequence[SampleTokens]) -> SampleTokens:
        """The contexts of several corpora, which have one BOS, corpus after corpus."""
        if len(samples) == 1:
            return samples[0]
        lengths = [np.diff(sample.starts) for sample in samples]
        return samples[0]._replace(
            tokens=np.concatenate([sample.tokens[: sample.starts[-1]] for sample in samples]),
            starts=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            corpora=tuple(name for sample in samples for name in sample.corpora),
            corpus=np.repeat(np.arange(len(samples)), [len(each) for each in lengths]),
        )

    @property
    def from_corpus(self) -> Ints:
        """int64 [n]: which corpus each context is from."""
        return np.zeros(len(self.starts) - 1, np.int64) if self.corpus is None else self.corpus

    def spread(self, tokens: int) -> SampleTokens:
        """About `tokens` tokens of contexts from everywhere, at least one (`Spread`)."""
        if self.starts[-1] <= tokens:
            return self
        spread = Spread(tokens)
        for first in range(0, len(self.starts) - 1, _AT_ONCE):
            spread.add(np.diff(self.starts[first : first + _AT_ONCE + 1]))
        rows = spread.rows
        lengths = self.starts[rows + 1] - self.starts[rows]
        return self._replace(
            tokens=self.tokens[ranges(self.starts[rows], lengths)],
            starts=np.concatenate([[0], np.cumsum(lengths)]),
            corpus=None if self.corpus is None else self.corpus[rows],
        )

    def without_bos(self) -> SampleTokens:
        """The same contexts without their BOS."""
        keep = np.ones(int(self.starts[-1]), bool)
        keep[self.starts[:-1]] = False
        starts = self.starts - np.arange(len(self.starts))
        tokens = np.asarray(self.tokens[: len(keep)])[keep]
        return self._replace(tokens=tokens, starts=starts, bos=None, skip_first=False)

    def with_bos(self, bos: int) -> SampleTokens:
        """The same contexts with a BOS in front of each."""
        ids = np.asarray(self.tokens[: int(self.starts[-1])]).astype(np.int64)
        tokens = np.insert(ids, self.starts[:-1], bos).astype(np.uint32)
        starts = self.starts + np.arange(len(self.starts))
        return self._replace(tokens=tokens, starts=starts, bos=bos, skip_first=True)


class States(NamedTuple):
    """Hidden states at one hook, at the recorded positions.

    x: float32 [n, width]. first: bool [n], positions that begin a context. token: int64 [n], the
    token at each. context: int64 [n], the context that each is in.
    """

    x: Tensor
    first: Tensor
    token: Tensor
    context: Tensor

    def without(self, excluded: Sequence[int]) -> States:
        """The positions of other tokens."""
        if not excluded:
            return self
        included = ~torch.isin(self.token, torch.tensor(excluded, device=self.token.device))
        return States(*(column[included] for column in self))

    def before(self, context: int) -> States:
        """The positions of the contexts before that one."""
        earlier = self.context < context
        return States(*(column[earlier] for column in self))

    @property
    def median(self) -> float:
        """The median norm, 0 of nothing."""
        return float(self.x.norm(dim=1).median()) if len(self.x) else 0.0

    def ordinary(self, sink_threshold: float | None, median: float | None = None) -> Tensor:
        """The positions [n] that are not sinks, by `median` or their own median norm."""
        norms = self.x.norm(dim=1)
        if sink_threshold is None:
            return torch.ones_like(norms, dtype=torch.bool)
        most = sink_threshold * (self.median if median is None else median)
        return torch.as_tensor(norms <= most)


class Errors(NamedTuple):
    """What a reconstruction of y leaves. squared: float64 [n] on the CPU, ‖y - ŷ‖². y: [n, d].
    context: int64 [n], the context that each position is in."""

    squared: Tensor
    y: Tensor
    context: Tensor

    @property
    def share_explained(self) -> float:
        """1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖²."""
        return share_explained(float(self.squared.sum()), self.y)


class ExplainedVariance(NamedTuple):
    """How well an SAE explains.

    variance_explained: 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖². l0: mean active features. dead_share: features
    never active. counts: int64 [d_sae], tokens on which each feature was active. active: int64 [n],
    active features at each position. squared: float64 [n], ‖y - ŷ‖² at each.
    """

    variance_explained: float
    l0: float
    dead_share: float
    counts: Ints
    active: Tensor
    squared: Tensor


@torch.inference_mode()
def read_states(
    model: LoadedModel, hooks: Sequence[HookPoint], sample: SampleTokens, memory: DeviceMemory
) -> dict[str, States]:
    """States by hook name. Raises `ModelError` if they are NaN or infinite."""
    gathered: dict[str, list[Tensor]] = {hook.name: [] for hook in hooks}
    places: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(batch: Batch) -> dict[str, Tensor]:
        with full_float32():
            return forward(model, hooks, batch)

    for batch in batches(sample.tokens, sample.starts, memory.batch_tokens):
        for piece, residuals in memory.run(run, batch):
            row, index = positions(piece.lengths, sample.skip_first)
            flat = torch.from_numpy(row * piece.token_ids.shape[1] + index)
            tokens, contexts = piece.token_ids[row, index], piece.contexts[row]
            place = (index == int(sample.skip_first), tokens.astype(np.int64), contexts)
            first, token, context = map(torch.from_numpy, place)
            places.append((first, token, context))
            for name, residual in residuals.items():
                recorded = residual.reshape(-1, residual.shape[-1])[
                    flat.to(residual.device)
                ].float()
                all_finite(recorded, name)
                gathered[name].append(recorded)
    columns = [torch.cat(column) for column in zip(*places, strict=True)]
    return {
        name: States(torch.cat(pieces), *(column.to(pieces[0].device) for column in columns))
        for name, pieces in gathered.items()
    }


@torch.inference_mode()
def explain(
    sae: LoadedSae, x: Tensor, y: Tensor | None, *, top: int | None = None
) -> ExplainedVariance:
    """Compare decode(encode(x)) with y. x [n, d_in], y [n, d_out] or None to compare nothing.

    top: only so many of each token's activations, the largest.
    """
    counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
    active = torch.zeros(len(x), dtype=torch.int64, device=sae.device)
    squared = torch.zeros(len(x), dtype=torch.float64)

    def add(rows: slice) -> None:
        part = x[rows]
        acts = sae.encode(part)
        if top is not None:
            largest = acts.topk(min(top, sae.d_sae), dim=1)
            acts = torch.zeros_like(acts).scatter_(1, largest.indices, largest.values)
        fires = acts != 0
        if y is not None:
            squared[rows] = squared_errors(y[rows], sae.decode(acts, part))
        active[rows] = fires.sum(dim=1)
        counts.add_(fires.sum(dim=0))

    with full_float32():
        in_pieces(add, len(x), _ROWS, f"a token's activations of SAE {sae.name}")
    return ExplainedVariance(
        0.0 if y is None else share_explained(float(squared.sum()), y),
        float(counts.sum()) / max(1, len(x)),
        1.0 - float((counts > 0).float().mean()),
        counts.cpu().numpy(),
        active,
        squared,
    )


def squared_errors(y: Tensor, rebuilt: Tensor) -> Tensor:
    """‖y - ŷ‖² of each row, float64 [n], on the CPU: Apple's GPUs have no float64."""
    return (y.cpu().double() - rebuilt.cpu().double()).square().sum(dim=1)


def share_explained(squared: float, y: Tensor) -> float:
    """1 - squared / Σ‖y - ȳ‖², with `squared` the error of a reconstruction of y [n, d]."""
    y = y.cpu().double()
    variance = float((y - y.mean(dim=0)).square().sum()) if len(y) else 0.0
    return 1.0 - squared / variance if variance else 0.0
