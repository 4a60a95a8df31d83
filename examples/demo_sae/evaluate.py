"""Scores of a saved SAE on held-out text.

- FVU: sum of ||x - x_hat||^2 over sum of ||x - mean||^2.
- L0: active features per token.
- dead: features that fire on none of the tokens.
- loss recovered: (mean-ablated - spliced) / (mean-ablated - clean) cross-entropy, where BOS
  and sinks pass through unchanged in all three.

All scores exclude BOS and sinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from examples.demo_sae.activations import Windows, batches, blocks, is_sink, pad
from examples.demo_sae.saved import SavedSAE


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction scores over `tokens` rows. `density` is per feature, float64 [d_sae]."""

    tokens: int
    fvu: float
    l0: float
    density: Tensor


@dataclass(frozen=True)
class LossRecovered:
    """Mean cross-entropy per predicted token, in nats, of three forward passes."""

    tokens: int
    clean: float
    spliced: float
    ablated: float

    @property
    def recovered(self) -> float:
        """The share of the ablation loss that the SAE recovers."""
        return (self.ablated - self.spliced) / (self.ablated - self.clean)


def _chunks(data: Tensor, rows: Tensor) -> Iterator[Tensor]:
    for part in blocks(rows):
        yield data[part].float()


def reconstruction(sae: SavedSAE, data: Tensor, rows: Tensor) -> Reconstruction:
    """Scores over data[rows], computed in float32. data: bfloat16 [tokens, d]."""
    mean = torch.zeros(data.shape[1], dtype=torch.float64)
    for x in _chunks(data, rows):
        mean += x.sum(0)
    center = (mean / len(rows)).float()
    error = total = 0.0
    fired = torch.zeros(len(sae.b_enc), dtype=torch.float64)
    for x in _chunks(data, rows):
        codes = sae.encode(x)
        error += float((x - sae.decode(codes)).square().sum())
        total += float((x - center).square().sum())
        fired += (codes > 0).sum(0)
    count = len(rows)
    return Reconstruction(count, error / total, float(fired.sum()) / count, fired / count)


def never_fired(sae: SavedSAE, data: Tensor, rows: Tensor, silent: Tensor) -> Tensor:
    """The features of `silent`, int64 [n], that fire on none of data[rows]."""
    for x in _chunks(data, rows):
        if not len(silent):
            break
        silent = silent[~(sae.encode(x, silent) > 0).any(0)]
    return silent


@torch.inference_mode()
def loss_recovered(
    sae: SavedSAE,
    model: Any,
    layer: int,
    windows: Windows,
    members: Sequence[int],
    mean: Tensor,
    median_norm: float,
) -> LossRecovered:
    """Cross-entropy over the windows `members` with the residual at `layer` replaced.

    `mean`, float32 [d], replaces the residual when ablating. Each prediction of a
    window's token counts once, the first included (made at BOS).
    """

    def splice(x: Tensor) -> Tensor:
        return sae.decode(sae.encode(x))

    edits: list[Callable[[Tensor], Tensor] | None] = [None, splice, lambda x: mean.expand_as(x)]
    totals = np.zeros(3)
    predicted = 0
    for batch in batches(windows, members):
        ids = pad(windows, batch, model.config.bos_token_id)
        lengths = torch.tensor([len(windows.tokens[index]) for index in batch])
        real = torch.arange(ids.shape[1] - 1) < lengths[:, None]
        for number, edit in enumerate(edits):
            hook = model.model.layers[layer].register_forward_hook(_editor(edit, median_norm))
            try:
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            finally:
                hook.remove()
            # The vocabulary is large. One window at a time limits the logits' memory.
            for row in range(len(batch)):
                logits = model.lm_head(hidden[row, :-1][real[row]]).float()
                target = ids[row, 1:][real[row]]
                totals[number] += float(cross_entropy(logits, target, reduction="sum"))
        predicted += int(lengths.sum())
    clean, spliced, ablated = (totals / predicted).tolist()
    return LossRecovered(predicted, clean, spliced, ablated)


def _editor(edit: Callable[[Tensor], Tensor] | None, median_norm: float) -> Any:
    """A forward hook that applies `edit` to every position except BOS and sinks."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if edit is None:
            return output
        x = hidden.float()
        kept = is_sink(x.norm(dim=-1), median_norm)
        kept[:, 0] = True
        changed = hidden.clone()
        changed[~kept] = edit(x[~kept]).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook
