"""Activations as users give them: a number, `10x` the maximum, or the quantile `q0.99`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from featuredb.errors import QueryError
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.activations import feature_activations

UNITS = ("activation", "maximum", "quantile")

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_SPELLED = re.compile(f"(?P<q>q)?(?P<number>{_NUMBER})(?P<x>x)?", re.IGNORECASE)


@dataclass(frozen=True)
class Strength:
    """An activation: `value` itself, times the feature's stored maximum, or a quantile from 0 to 1.

    Quantile q is the smallest stored activation v of which at least the share q is at most v, as
    in `featuredb.store.schemas.FEATURES`.
    """

    value: float
    unit: str = "activation"

    @classmethod
    def parse(cls, text: str) -> Strength:
        """From `12`, `10x` or `q0.99`. Raises `QueryError`."""
        match = _SPELLED.fullmatch(text.strip())
        if match is None or (match["q"] and match["x"]):
            raise QueryError(
                f"{text.strip()!r} is no activation: give a number, a multiple of the feature's "
                "maximum such as 0.5x, or a quantile such as q0.9"
            )
        value = float(match["number"])
        if not math.isfinite(value):
            raise QueryError(f"{text.strip()} is too large a number for an activation")
        if match["q"] and not 0 <= value <= 1:
            raise QueryError(f"a quantile is from q0 to q1, not {text.strip()}")
        return cls(value, "quantile" if match["q"] else "maximum" if match["x"] else "activation")

    def of(self, store: Store, sae: Sae, feature: int) -> float:
        """The activation for one feature. Raises `QueryError` where it needs one that fires."""
        if self.unit == "activation":
            return self.value
        maximum = float(store.features.max_activation(sae)[feature])
        if math.isnan(maximum):
            raise QueryError(
                f"feature {sae.name}/{feature} never fires, so it has no {self.unit}: give a number"
            )
        if self.unit == "maximum":
            return self.value * maximum
        values = feature_activations(store, sae, feature)[2]
        place = max(math.ceil(self.value * len(values)) - 1, 0)
        return float(np.partition(values, place)[place])

    def __str__(self) -> str:
        before, after = {"quantile": ("q", ""), "maximum": ("", "x")}.get(self.unit, ("", ""))
        return f"{before}{self.value:g}{after}"
