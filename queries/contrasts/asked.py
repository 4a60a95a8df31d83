"""What a contrast is asked, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featuredb.errors import QueryError
from queries.arguments import check_choice, check_k, check_seed, check_text
from queries.encode import Pool

POOLS = ("max", "sum", "mean")


@dataclass(frozen=True)
class Asked:
    """The arguments of `featuredb.Database.contrast`, checked."""

    a: Any
    b: Any
    paired: str | None
    target: str | None
    unit: str
    pool: Pool
    k: int
    each: str | None
    sae: str | None
    min_share: float | None
    max_share: float
    covariate: tuple[str, ...]
    holdout: float | None
    probe: int | None
    seed: int
    on: int | str | None = None

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, POOLS)
        check_k(self.k)
        check_seed(self.seed)
        for name, value in (("paired", self.paired), ("target", self.target), ("each", self.each)):
            if value is not None:
                check_text(value, name)
        ways = [n for n in ("paired", "target", "each") if getattr(self, n) is not None]
        if len(ways) > 1:
            raise QueryError(f"give one of {' and '.join(ways)}, not both")
        if self.each is not None and (self.a is not None or self.b is not None):
            raise QueryError("each compares every value of a column with the rest: leave A and B")
        if self.a is None and self.each is None and self.target is None:
            raise QueryError("give A: a SQL condition on documents, ids, or texts")
        if self.target is not None and self.b is not None:
            raise QueryError("a target needs no B: the units are those of A, or all")
        if not all(isinstance(column, str) for column in self.covariate):
            raise QueryError("a covariate must be the name of a column")
        for name, share in (("min_share", self.min_share), ("max_share", self.max_share)):
            if share is not None and not _within(share, 0, 1):
                raise QueryError(f"{name} must be a share, 0 to 1, not {share!r}")
        if self.min_share is not None and self.min_share > self.max_share:
            raise QueryError("min_share is above max_share: no feature is between them")
        if self.holdout is not None and not (_within(self.holdout, 0, 1) and 0 < self.holdout < 1):
            raise QueryError(f"holdout must be a share between 0 and 1, not {self.holdout!r}")
        if self.probe is not None:
            check_k(self.probe)
        if ways and (self.holdout is not None or self.probe is not None):
            raise QueryError(f"holdout and probe are of two sets: leave out {ways[0]}")
        if ways and ways != ["each"] and self.covariate:
            raise QueryError(f"covariates are of two sets: leave out {ways[0]}")


def _within(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool) and low <= value <= high  # type: ignore[operator]
