"""Conditions on a feature, such as `1927` (it fires), `1927 > 5` or `sae/3 >= 0.5x < q0.99`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.store.names import parse_feature
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.activations import feature_activations
from queries.strength import Strength

_BOUNDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile("(>=|<=|>|<)")


@dataclass(frozen=True)
class Condition:
    """A feature fires, with its activation within `bounds`: pairs of a sign and an activation."""

    sae: Sae
    feature: int
    bounds: tuple[tuple[str, float], ...]
    spelled: str

    @classmethod
    def parse(cls, store: Store, text: int | str) -> Condition:
        """From a feature and any number of bounds. Raises `UnknownFeatureError`, `QueryError`."""
        name, *rest = _BOUND.split(text) if isinstance(text, str) else [str(text)]
        sae, feature = parse_feature(store.snapshot, name.strip())
        spelled, bounds = f"{sae.name}/{feature}", []
        for sign, value in zip(rest[::2], rest[1::2], strict=True):
            strength = Strength.parse(value)
            bounds.append((sign, strength.of(store, sae, feature)))
            spelled += f" {sign} {strength}"
        return cls(sae, feature, tuple(bounds), spelled)

    def maximum(self, store: Store) -> float:
        """The size of the feature's largest stored activation, 1 where it never fires."""
        maximum = abs(float(store.features.max_activation(self.sae)[self.feature]))
        return maximum if maximum > 0 else 1.0

    def places(self, store: Store) -> Places:
        """Where it holds."""
        context, token, activation = feature_activations(store, self.sae, self.feature)
        position = context << store.snapshot.position_bits | token
        places = Places(position, activation)
        return places[within(activation, self.bounds)]


def within(activation: Any, bounds: tuple[tuple[str, float], ...]) -> Any:
    """Which activations, an array or a tensor [n], are within bounds and not zero, bool [n]."""
    held = activation != 0
    for sign, bound in bounds:
        exact = np.float64(bound) if isinstance(activation, np.ndarray) else bound
        held = held & _BOUNDS[sign](activation, exact)
    return held


@dataclass(frozen=True)
class Places:
    """Tokens at which a condition holds.

    position: int64 [n], ascending, context_id << position_bits | token_index. activation: float32
    [n].
    """

    position: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]

    def __getitem__(self, chosen: npt.NDArray[Any]) -> Places:
        return Places(self.position[chosen], self.activation[chosen])

    def __len__(self) -> int:
        return len(self.position)
