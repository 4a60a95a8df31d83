"""Means over prompts, and how sure they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045,
)  # fmt: skip
"""The 97.5 % quantile of Student's t with 1, 2, … 29 degrees of freedom."""


class Interval(NamedTuple):
    """A mean over n prompts with its 95 % interval by Student's t, None of a single prompt."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Interval:
        """Over the values, at least one."""
        n, mean = len(values), float(values.mean())
        if n < 2:
            return cls(mean, None, None, n)
        t = _T_975[n - 2] if n - 2 < len(_T_975) else 1.96 + 2.4 / (n - 1)
        half = t * float(values.std(ddof=1)) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)

    def exp(self) -> Interval:
        """Of the exponential: perplexities from mean log-likelihoods."""

        def of(end: float | None) -> float | None:
            return None if end is None else math.exp(min(end, 700))

        return Interval(math.exp(min(self.mean, 700)), of(self.low), of(self.high), self.n)
