"""The load check: what an SAE does on the first tokens of the corpus, before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from featuredb.errors import HookError, LoadCheckError
from featuredb.snapshot import LoadCheck
from ingest.batches import batches
from ingest.extract import Rule, forward, positions
from ingest.hooks import HookPoint
from ingest.model import LoadedModel
from ingest.sae import Sae

SAMPLE_TOKENS = 8_192
"""Enough for L0 and explained variance to two digits, a few seconds on a CPU."""

L0_FACTOR = 5.0
"""An L0 this many times the stated one is taken for a wrong load: a TopK read as ReLU, a
normalisation forgotten, a wrong layer are all louder than this."""


def fit(sae: Sae, name: str, hook: HookPoint) -> None:
    """Raises `HookError` when the SAE cannot read this hook, naming both widths."""
    if sae.d_in != hook.width:
        raise HookError(
            f"SAE {name} reads {sae.d_in} dimensions but {hook.name} gives {hook.width}: "
            "give the hook it was trained on with --hook, or the model it was trained on"
        )


@torch.inference_mode()
def measure(
    model: LoadedModel,
    saes: Sequence[tuple[Sae, HookPoint, HookPoint | None]],
    tokens: npt.NDArray[np.unsignedinteger],
    starts: npt.NDArray[np.int64],
    budget: int,
    rule: Rule,
    sink_threshold: float | None,
) -> list[LoadCheck]:
    """Measure each (SAE, input hook, output hook or None) on the first contexts.

    Sinks and BOS are left out of every figure as they are left out of the store. The median norm
    counts every position but BOS. variance explained = 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖², with y the
    hook the SAE reconstructs.
    """
    end = int(np.searchsorted(starts, SAMPLE_TOKENS, side="left"))
    sample = starts[: max(2, min(end + 1, len(starts)))]
    hooks = {h.name: h for _, read, write in saes for h in (read, write) if h is not None}
    gathered: dict[str, list[torch.Tensor]] = {name: [] for name in hooks}
    for batch in batches(tokens, sample, budget):
        residuals = forward(model, list(hooks.values()), batch)
        row, index = positions(batch.lengths, rule.skip_first)
        flat = torch.from_numpy(row * batch.token_ids.shape[1] + index)
        for name, residual in residuals.items():
            kept = residual.reshape(-1, residual.shape[-1])[flat.to(residual.device)]
            gathered[name].append(kept.float())
    states = {name: torch.cat(pieces) for name, pieces in gathered.items()}
    return [_measure(sae, read, write, states, sink_threshold) for sae, read, write in saes]


def _measure(
    sae: Sae,
    read: HookPoint,
    write: HookPoint | None,
    states: dict[str, torch.Tensor],
    sink_threshold: float | None,
) -> LoadCheck:
    x = states[read.name]
    norms = x.norm(dim=1)
    median = float(norms.median())
    kept = norms <= sink_threshold * median if sink_threshold is not None else norms >= 0
    x = x[kept]
    y = states[write.name][kept] if write is not None else x
    active = torch.zeros(sae.d_sae, dtype=torch.bool, device=x.device)
    total = squared = 0.0
    for start in range(0, len(x), 1_024):
        part = x[start : start + 1_024]
        acts = sae.encode(part)
        active |= (acts != 0).any(dim=0)
        total += float((acts != 0).sum())
        rebuilt = sae.decode(acts, part)
        squared += float((y[start : start + 1_024].double() - rebuilt.double()).square().sum())
    variance = float((y.double() - y.double().mean(dim=0)).square().sum())
    return LoadCheck(
        tokens=len(x),
        l0=total / max(1, len(x)),
        variance_explained=1.0 - squared / variance if variance else 0.0,
        dead_share=1.0 - float(active.float().mean()),
        median_norm=median,
        sink_threshold=sink_threshold,
    )


def judge(name: str, sae: Sae, hook: HookPoint, check: LoadCheck) -> None:
    """Raises `LoadCheckError` when the SAE does not explain what it reads."""
    likely = (
        "the usual causes are a wrong layer, resid_pre read as resid_post (off by one), "
        "a missing BOS or a wrong normalisation; --no-check goes on all the same"
    )
    if not check.variance_explained > 0:
        raise LoadCheckError(
            f"SAE {name} explains none of the variance at {hook.name} "
            f"({check.variance_explained:.2f} on {check.tokens} tokens, L0 {check.l0:.1f}): "
            f"{likely}"
        )
    if sae.stated_l0 and check.l0 > L0_FACTOR * sae.stated_l0:
        raise LoadCheckError(
            f"SAE {name} has L0 {check.l0:.1f} at {hook.name} where its files state "
            f"{sae.stated_l0:g}: {likely}"
        )
