"""What an effect is held against: the same edit turned around, of another feature, or as noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.steering.edits import Edit
from featuredb.steering.opened import ReadyEdits
from featuredb.steering.resolve import ResolvedEdit
from featuredb.steering.rows import CodeChange, SaeEdits, by_sae
from ingest.model.hooks import HookPoint
from queries.directions import stored_direction

_CANDIDATES = 50
"""Features of the nearest density that a random one is drawn from."""


class _Turned(SaeEdits):
    """Edits whose sum is turned around, or into another direction."""

    turn: Callable[[Tensor], Tensor]

    def delta(self, x: Tensor, change: CodeChange, hook: HookPoint) -> Tensor | None:
        delta = super().delta(x, change, hook)
        return None if delta is None else self.turn(delta)


@dataclass(frozen=True)
class Control:
    """A variant of some edits. about: which feature stands for which, where others do."""

    name: str
    edits: list[SaeEdits]
    about: str = ""


def control_edits(made: ReadyEdits, seed: int) -> list[Control]:
    """The controls of edits: sign-flipped, random features, noise of the same norm.

    A random feature is drawn from those of the same SAE whose count is nearest, and edited so that
    its direction weighs as much. Noise is one random direction per SAE, at each token as long as
    what the edits add there.
    """
    others = [_other(made, edit, seed + number) for number, edit in enumerate(made.resolved)]
    about = ", ".join(
        f"{one.name} for {edit.name}" for one, edit in zip(others, made.resolved, strict=True)
    )
    push_out = any(each.push_out for each in made.applied)
    return [
        Control("flipped", [_turned(each, torch.neg) for each in made.applied]),
        Control("random feature", by_sae(made.saes, others, push_out=push_out), about),
        Control("noise", [_turned(each, _noise(seed + i)) for i, each in enumerate(made.applied)]),
    ]


def _turned(edits: SaeEdits, turn: Callable[[Tensor], Tensor]) -> SaeEdits:
    turned = _Turned(edits.attached, edits.edits, push_out=edits.push_out)
    turned.turn = turn
    return turned


def _noise(seed: int) -> Callable[[Tensor], Tensor]:
    def turn(delta: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        direction = torch.randn(delta.shape[1], generator=draw).to(delta.device)
        noise: Tensor = delta.norm(dim=1, keepdim=True) * (direction / direction.norm())
        return noise

    return turn


def _other(made: ReadyEdits, edit: ResolvedEdit, seed: int) -> ResolvedEdit:
    """The same edit of another feature. Raises `QueryError` where the SAE has no other."""
    store = made.store
    taken = {e.feature for e in made.resolved if e.sae.name == edit.sae.name}
    counts = np.asarray(store.features.count(edit.sae), np.int64)
    far = np.abs(np.log1p(counts) - np.log1p(counts[edit.feature]))
    far[[*taken]] = np.inf
    near = np.argsort(far, kind="stable")[:_CANDIDATES]
    near = near[np.isfinite(far[near])]
    if not len(near):
        raise QueryError(f"SAE {edit.sae.name} has no other feature to compare with: --no-controls")
    own = _norm(made, edit, edit.feature)
    for feature in np.random.default_rng(seed).permutation(near):
        norm = _norm(made, edit, int(feature))
        if norm > 0:
            value = edit.value if edit.op == "scale" else edit.value * own / norm
            given = Edit(
                f"{edit.sae.name}/{feature}", edit.op, value, "activation", edit.edit.where,
                edit.method,
            )  # fmt: skip
            return replace(edit, edit=given, feature=int(feature), value=value)
    raise QueryError(f"SAE {edit.sae.name} has no other feature to compare with: --no-controls")


def _norm(made: ReadyEdits, edit: ResolvedEdit, feature: int) -> float:
    return float(np.linalg.norm(stored_direction(made.store, edit.sae, feature, "decoder")))
