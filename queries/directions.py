"""The directions of features, how they compare, and what chance would give."""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.names import parse_feature
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from featuredb.store.vectors.directions import length
from featuredb.store.vectors.exact import cosines
from queries.arguments import check_choice
from queries.connection import Reader

Direction = npt.NDArray[np.float32]

KINDS = ("decoder", "encoder")

_SAMPLED_GROUPS = 8
"""Row groups of a neighbor graph whose features are the sample for `chance`: some 800 features."""


def direction(reader: Reader, feature: int | str, by: str = "decoder") -> Direction:
    """See `featuredb.Database.direction`."""
    sae, number = parse_feature(reader.snapshot, feature)
    check_choice("by", by, KINDS)
    return stored_direction(reader.store, sae, number, by)


def stored_direction(store: Store, sae: Sae, feature: int, by: str) -> Direction:
    """A feature's direction, float32 [d], as the SAE has it."""
    before = 0
    for other in store.directions.group(sae, by):
        if other == sae:
            break
        before += other.d_sae
    row: Direction = store.directions.rows(sae, by).take(np.array([before + feature]))[0]
    return row


def cosine(store: Store, one: tuple[Sae, int], other: tuple[Sae, int], by: str) -> float | None:
    """The cosine of two directions, scored as `near` does.

    None if their widths differ, or there are none.
    """
    if not length(one[0], by) or length(one[0], by) != length(other[0], by):
        return None
    directions = [stored_direction(store, *each, by) for each in (one, other)]
    return float(cosines(directions[0], directions[1][None])[0])


class Chance(NamedTuple):
    """What to hold the score of a neighbor against.

    nearest: the median, over a sample of the SAE's features, of the score of the nearest one. None
    where no feature has any. random: what the largest cosine of a random direction with all
    directions would be, were these random too, or the most negative. None for co-activation: on the
    card that is what independent firing would give.
    """

    nearest: float | None
    random: float | None

    def __str__(self) -> str:
        shown = []
        if self.nearest is not None:
            shown.append(f"a feature's nearest is at {self.nearest:.2f} (median)")
        if self.random is not None:
            which = "" if shown else " opposite is" if self.random < 0 else " nearest is"
            shown.append(f"a random direction's{which} at {self.random:.2f}")
        return ", ".join(shown)


def chance(store: Store, sae: Sae, by: str) -> Chance:
    """The yardstick for `near` of one SAE. Read once per store."""
    kept = _KEPT.setdefault(store, {})
    if (sae.name, by) not in kept:
        random = chance_among(store, sae, by).random if by in KINDS else None
        nearest = _nearest(store, sae, by)
        median = float(np.median(nearest)) if len(nearest) else None
        kept[sae.name, by] = Chance(median, random)
    return kept[sae.name, by]


def chance_among(
    store: Store, sae: Sae, by: str, *, alone: bool = False, opposite: bool = False
) -> Chance:
    """The yardstick for the directions of an SAE, `alone` or with those comparable with them.

    n random directions in d dimensions have cosines of variance 1/d with any other, and the largest
    of n is near ``sqrt(2 ln(n) / d)``.
    """
    rows = sum(other.d_sae for other in store.directions.group(sae, by, alone=alone))
    largest = (
        math.sqrt(2 * math.log(rows) / length(sae, by)) if rows > 1 and length(sae, by) else None
    )
    return Chance(None, -largest if opposite and largest is not None else largest)


def _nearest(store: Store, sae: Sae, by: str) -> npt.NDArray[np.float32]:
    """The score of the nearest feature, of a sample of the SAE's features."""
    derived = store.snapshot.derived
    files = {"decoder": derived.neighbors_decoder, "encoder": derived.neighbors_encoder}
    path = files.get(by, derived.coactivation).path
    ranges = store.graph_groups(path)
    held = [
        group
        for group, (first, last) in enumerate(zip(ranges.first_sae, ranges.last_sae, strict=True))
        if first <= sae.name <= last
    ]
    if not held:
        return np.empty(0, np.float32)
    at = np.unique(np.linspace(0, len(held) - 1, _SAMPLED_GROUPS).astype(int))
    table = store.files.read(path, [held[i] for i in at], ["sae", "rank", "score"])
    mine = np.array(table.column("sae").to_pylist(), dtype=object) == sae.name
    scores: npt.NDArray[np.float32] = chunk_to_numpy(table.column("score"))
    nearest: npt.NDArray[np.float32] = scores[mine & (chunk_to_numpy(table.column("rank")) == 1)]
    return nearest


_KEPT: WeakKeyDictionary[Store, dict[tuple[str, str], Chance]] = WeakKeyDictionary()
"""What `chance` read, by SAE and kind."""
