"""SAEs of a set whose members, one for each layer, write to several layers together.

y_o = b_o + Σ_i f_i W_i→o [+ x_o S_o], with f_i the activations of the member at place i, W_i→o what
it writes to place o, and b_o and S_o of the member at place o. Cross-layer transcoders (Ameisen et
al. 2025) and the weakly causal crosscoders of Gemma Scope 2 are such sets.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featuredb.errors import SaeError, first_line


@dataclass(frozen=True)
class CrossLayer:
    """The place of one SAE in its set, and where its decoders are.

    A set's decoders are several times the size of its encoders, so each is read when asked for.
    """

    group: str
    """The folder of the set, the same for all members."""
    member: str
    """What tells this one from the others, as "layer_7"."""
    place: int
    sites: tuple[str | None, ...]
    """Where the sum that is written to each place belongs. None where the files do not say."""
    file: Path
    tensor: str
    """[d_sae, places from `first` on, d_out]"""
    first: int = 0
    causal: bool = False
    """Members write to their own place and later ones, by the format's layout."""

    def towards(self, place: int) -> Tensor:
        """float32 [d_sae, d_out]: what it writes to `place`, which is at least `first`.

        Raises SaeError where the file cannot be read.
        """
        return self._stacked()[:, place - self.first].float()

    def total(self) -> tuple[Tensor, tuple[int, ...]]:
        """The sum of its decoders, float32 [d_sae, d_out], and the places that it writes to.

        Raises SaeError where the file cannot be read or holds NaN or infinity.
        """
        stacked = self._stacked()
        total = stacked.sum(dim=1, dtype=torch.float32)
        if not torch.isfinite(total).all():
            raise SaeError(f"{self.file}: {self.tensor} holds NaN or infinite values")
        places = range(self.first, len(self.sites))
        if self.causal:
            return total, tuple(places)
        return total, tuple(o for o in places if stacked[:, o - self.first].count_nonzero() > 0)

    def _stacked(self) -> Tensor:
        """[d_sae, places from `first` on, d_out], mapped from the file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as handle:
                stacked: Tensor = handle.get_tensor(self.tensor)
        except (SafetensorError, OSError) as error:
            raise SaeError(
                f"{self.file}: cannot be read as safetensors: {first_line(error)}"
            ) from error
        return stacked

    def feeders(self, place: int) -> range:
        """The places whose members may write to `place`."""
        return range(place + 1 if self.causal else len(self.sites))

    def complete(self, place: int, members: Container[int]) -> bool:
        """Whether all that is written to `place` comes from `members`, by their places."""
        return place in members and all(feeder in members for feeder in self.feeders(place))
