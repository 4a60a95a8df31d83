"""A contrast under way: its units, how its features are scored, and the answer of what is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from queries.connection import Reader
from queries.contrasts.asked import Asked
from queries.contrasts.chosen import Compared
from queries.contrasts.contexts_of_sides import contexts_of_sides
from queries.contrasts.contrasted import Contrast
from queries.contrasts.scores import Scores, of_two, with_log_odds
from queries.contrasts.strata import strata
from queries.contrasts.two_sets import Sides, difference, joined
from queries.fires import Encode
from queries.pooled import Int32, Int64

_POOLED = {"max": "largest activation", "sum": "summed activation", "mean": "mean activation"}
_CONTEXTS = 20


class Asking:
    """One question about chosen units."""

    def __init__(self, reader: Reader, asked: Asked, made: Compared, encode: Encode) -> None:
        self.reader, self.asked, self.made, self.encode = reader, asked, made, encode
        self.notes = list(made.notes)
        self.on = None if made.units.on is None else made.units.on.name
        self.pooled = f"a {asked.unit}'s {_POOLED[asked.pool]}"
        if self.on is not None:
            self.pooled += f" on tokens on which {self.on} fires"

    def bounds(self) -> tuple[float | None, float]:
        """Of the share of units that a feature is active in."""
        return self.asked.min_share, self.asked.max_share

    def side(self, in_a: Int64, in_b: Int64) -> npt.NDArray[np.uint8]:
        """uint8 per unit: 1 in A, 2 in B, 0 in neither."""
        side = np.zeros(self.made.n, np.uint8)
        side[in_a], side[in_b] = 1, 2
        return side

    def alike(self, smaller: int) -> Int32 | None:
        """The stratum of each unit by the covariates, None without any."""
        covariate = self.asked.covariate
        return strata(self.reader, self.made, covariate, smaller) if covariate else None

    def test_of(self, null: str) -> str:
        """The null hypothesis, with what units are alike in and the test."""
        if not self.asked.covariate:
            return f"{null} (Mann-Whitney)"
        alike = " and ".join(self.asked.covariate)
        return f"{null}, among {self.asked.unit}s alike in {alike} (van Elteren)"

    def scored(self, sides: Sides) -> Scores:
        """The figures of every feature."""
        parts = [
            joined(list(self.made.map(self.reader, sae, lambda p: difference(p, sides))))
            for sae in self.made.saes
        ]
        return of_two(self.made.saes, parts, sides)

    def answer(
        self,
        scores: Scores,
        tested: npt.NDArray[np.bool_],
        rows: Int64,
        sides: Sides,
        null: str,
        probe: dict[str, Any] | None = None,
    ) -> Contrast:
        """The answer of `rows`, an index of `scores`, as figures of two sets."""
        n_a, n_b = sides.n.sum(axis=1).astype(int).tolist()
        scores = with_log_odds(scores, n_a, n_b, int(tested.sum()))
        one, two = self.made.called
        return self.made_of(scores, tested, rows, one, two, n_a, n_b, null, probe)

    def made_of(
        self,
        scores: Scores,
        tested: npt.NDArray[np.bool_],
        rows: Int64,
        a: str,
        b: str,
        n_a: int,
        n_b: int,
        null: str,
        probe: dict[str, Any] | None,
    ) -> Contrast:
        """The answer of `rows`, with a context of each side where there is a B."""
        asked = self.asked
        first = [
            (rank, scores.saes[int(scores.sae[row])], int(scores.feature[row]))
            for rank, row in enumerate(rows[:_CONTEXTS].tolist(), 1)
        ]
        q = scores.q(tested)
        contexts = pa.table({})
        if b:
            contexts = contexts_of_sides(self.reader, self.made, first, self.encode)
        return Contrast(
            scores.table(self.reader.store, rows, q),
            a=a,
            b=b,
            n_a=n_a,
            n_b=n_b,
            unit=asked.unit,
            pool=asked.pool,
            null=null,
            tested=int(tested.sum()),
            found=int((q[tested] < 0.05).sum()),
            notes=tuple(self.notes),
            probe=probe,
            contexts=contexts,
            special=self.reader.store.texts.special,
        )
