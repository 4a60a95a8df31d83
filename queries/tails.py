"""Tails of the distributions of test statistics."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_NORMAL = NormalDist()
Z95 = 1.959963984540054
"""Standard errors on each side of a normal 95 % interval."""


def two_sided(z: Float64) -> Float64:
    """The chance of a standard normal value at least as far from 0 as z [m]."""
    return np.array([math.erfc(abs(x) / math.sqrt(2)) for x in z.tolist()], np.float64)


def skewed(z: Float64, skew: Float64) -> Float64:
    """Standard normal deviates of the tails of a Pearson type III distribution at z [m].

    By Wilson and Hilferty's cube root (1931). No further from 0 than z, and 0 where the
    distribution has most of itself beyond z. skew: third standardized moments [m].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        u = 6 / skew * (np.cbrt(np.maximum(skew * z / 2 + 1, 0)) - 1) + skew / 6
    u = np.where(np.abs(skew) < 1e-6, z, u)
    u = np.where(np.sign(u) == np.sign(z), u, 0)
    return np.where(np.abs(u) < np.abs(z), u, z)


def log_factorials(n: int) -> Float64:
    """ln 0! to ln n!, [n + 1]."""
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))


def normal_deviate(p: Float64) -> Float64:
    """The standard normal value, 0 or above, that `two_sided` gives p for, [m]. p: 0 to 1."""
    least = np.maximum(p, 1e-300).tolist()
    return np.array([-_NORMAL.inv_cdf(x / 2) if x < 1 else 0.0 for x in least], np.float64)


def two_sided_t(t: Float64, df: Float64) -> Float64:
    """The same of Student's t with df degrees of freedom, [m]: ``I_x(df / 2, 1 / 2)`` with
    x = df / (df + t²) (Abramowitz and Stegun 26.5.27). NaN where t or df is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = _incomplete_beta(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t))
    return np.where(np.isinf(t), 0.0, p)


def _incomplete_beta(a: Float64, b: float, x: Float64, rest: Float64) -> Float64:
    """The regularized incomplete beta function I_x(a, b), rest = 1 - x.

    By its continued fraction (Abramowitz and Stegun 26.5.8) on the side where that converges fast.
    """
    log_beta = np.array([math.lgamma(v) + math.lgamma(b) - math.lgamma(v + b) for v in a.tolist()])
    with np.errstate(divide="ignore", invalid="ignore"):
        front = np.exp(a * np.log(x) + b * np.log(rest) - log_beta)
        near = x < (a + 1) / (a + b + 2)
        below = front * _fraction(a, np.full_like(a, b), x) / a
        above = 1 - front * _fraction(np.full_like(a, b), a, rest) / b
    result = np.where(near, below, above)
    return np.where(rest == 0, 1.0, np.where(x == 0, 0.0, result))


def _fraction(a: Float64, b: Float64, x: Float64) -> Float64:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c = np.ones_like(a)
    d = 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    h = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _away(1 + step * d, tiny)
            c = _away(1 + step / c, tiny)
            h = h * d * c
    return h


def _away(value: Float64, tiny: float) -> Float64:
    return np.where(np.abs(value) < tiny, tiny, value)


def wilson(k: int, n: int) -> tuple[float, float, float]:
    """A share and the ends of its 95 % interval (Wilson, 1927)."""
    if n == 0:
        return 0.0, 0.0, 1.0
    share = k / n
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    # Both ends are exact where rounding would leave a trace of the difference.
    return share, max(0.0, middle - half) if k else 0.0, min(1.0, middle + half) if k < n else 1.0
