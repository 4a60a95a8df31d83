"""A hook point: a place in a model where values are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["input", "output"]


@dataclass(frozen=True)
class HookPoint:
    """One place in one model: [batch, tokens, width] values pass here in each forward pass."""

    name: str
    """As it was asked for."""
    module: str
    """Path of the module in `model.named_modules()`."""
    side: Side
    layer: int | None
    """The layer it lies in, from 0; None outside the layers (the embedding counts as outside)."""
    width: int
    before_gain: bool = False
    """Values of an RMS norm before its weight is multiplied in, x / rms(x), recomputed from the
    module's input: what TransformerLens calls `hook_normalized`. Layer norms are taken whole."""

    @property
    def canonical(self) -> str:
        """One spelling for one place, whatever it was called: `model.layers.9.output`."""
        return f"{self.module}.{'normalized' if self.before_gain else self.side}"
