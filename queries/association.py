"""How strongly two features go together, from how often both, one and neither are active.

Of `n` units (tokens or documents) one feature is active in `a`, the other in `b`, both in `both`.
All is computed in float64, and the same by SQL (`SQL_MEASURES`). A measure whose denominator is
zero is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Float64 = npt.NDArray[np.float64]

COUNTS = ("both", "a_only", "b_only", "neither")
MEASURES = ("p_b_given_a", "p_a_given_b", "jaccard", "npmi", "phi", "g2")

ORDER_DECIMALS = 12
"""Measures are ranked as rounded to so many decimals: logarithms differ in the last digit."""


def table_columns(
    both: npt.NDArray[np.int64],
    a: npt.NDArray[np.int64],
    b: npt.NDArray[np.int64],
    n: npt.NDArray[np.int64],
) -> dict[str, pa.Array]:
    """`COUNTS` as int64 and `MEASURES` as float64 columns, null where undefined. All [m]."""
    counts = (both, a - both, b - both, n - a - b + both)
    columns = {
        name: pa.array(values, pa.int64()) for name, values in zip(COUNTS, counts, strict=True)
    }
    return columns | {k: nullable(v) for k, v in measures(both, a, b, n).items()}


def nullable(values: Float64) -> pa.Array:
    """float64 [m] with null for NaN."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def measures(both: Any, a: Any, b: Any, n: Any) -> Mapping[str, Float64]:
    """`MEASURES` of counts [m], float64, NaN where undefined.

    - p_b_given_a, p_a_given_b: ``both / a``, ``both / b``.
    - jaccard: ``both / (a + b - both)``.
    - npmi: pointwise mutual information ``ln(both n / (a b))`` over ``ln(n / both)``, from -1
      (never together) through 0 (independent) to 1 (always together). Bouma, Normalized (Pointwise)
      Mutual Information in Collocation Extraction, GSCL 2009.
    - phi: ``(n both - a b) / sqrt(a b (n - a) (n - b))``, Pearson's correlation of the two
      indicators. Yule, On the Methods of Measuring Association, 1912.
    - g2: ``2 sum(observed ln(observed / expected))`` over the four counts, the log-likelihood ratio
      against independence. Dunning, Accurate Methods for the Statistics of Surprise and
      Coincidence, Computational Linguistics 19, 1993.
    """
    both, a, b, n = (np.asarray(x, np.float64) for x in (both, a, b, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        npmi = np.log(both * n / (a * b)) / np.log(n / both)
        npmi[(both == 0) & (a > 0) & (b > 0)] = -1.0
        npmi[both == n] = np.nan
        cells = (
            (both, a, b),
            (a - both, a, n - b),
            (b - both, n - a, b),
            (n - a - b + both, n - a, n - b),
        )
        g2 = 2 * sum(
            np.where(observed > 0, observed * np.log(observed * n / (row * column)), 0.0)
            for observed, row, column in cells
        )
        return {
            "p_b_given_a": _ratio(both, a),
            "p_a_given_b": _ratio(both, b),
            "jaccard": _ratio(both, a + b - both),
            "npmi": npmi,
            "phi": _ratio(n * both - a * b, np.sqrt(a * b * (n - a) * (n - b))),
            "g2": np.maximum(g2, 0.0),
        }


def _ratio(above: Float64, below: Float64) -> Float64:
    return np.where(below > 0, above / below, np.nan)


def p_values(g2: Float64) -> Float64:
    """The chance of a g2 at least as large where two features are independent, [m].

    The upper tail of chi-squared with one degree of freedom (Wilks, The Large-Sample Distribution
    of the Likelihood Ratio, 1938): ``erfc(sqrt(g2 / 2))``.
    """
    return np.array([math.erfc(math.sqrt(x / 2)) for x in g2.tolist()], np.float64)


def q_values(p: Float64) -> Float64:
    """p [m] adjusted for m tests: the false discovery rate at which each would be accepted.

    Benjamini and Hochberg, Controlling the False Discovery Rate, JRSS B 57, 1995.
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p), np.float64)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def _cell(observed: str, row: str, column: str) -> str:
    return (
        f"CASE WHEN {observed} > 0 THEN {observed} * ln({observed} * n / ({row} * {column})) "
        "ELSE 0 END"
    )


_G2 = " + ".join(
    _cell(*cell)
    for cell in (
        ("ab", "a", "b"),
        ("(a - ab)", "a", "(n - b)"),
        ("(b - ab)", "(n - a)", "b"),
        ("(n - a - b + ab)", "(n - a)", "(n - b)"),
    )
)
SQL_G2 = f"greatest(2 * ({_G2}), 0)"
"""The log-likelihood ratio in SQL, of columns ab (both), a, b and n that are DOUBLE."""

_SQL = {
    "p_b_given_a": "ab / nullif(a, 0)",
    "p_a_given_b": "ab / nullif(b, 0)",
    "jaccard": "ab / nullif(a + b - ab, 0)",
    "npmi": "CASE WHEN a = 0 OR b = 0 OR ab = n THEN NULL WHEN ab = 0 THEN -1 "
    "ELSE ln(ab * n / (a * b)) / ln(n / ab) END",
    "phi": "(n * ab - a * b) / nullif(sqrt(a * b * (n - a) * (n - b)), 0)",
    "g2": SQL_G2,
}

SQL_MEASURES = ", ".join(f"CAST({sql} AS DOUBLE) AS {name}" for name, sql in _SQL.items())
"""`MEASURES` in SQL, of columns ab (both), a, b and n that are DOUBLE."""

SQL_COUNTS = ", ".join(
    f'CAST({sql} AS BIGINT) AS "{name}"'
    for name, sql in zip(COUNTS, ("ab", "a - ab", "b - ab", "n - a - b + ab"), strict=True)
)
"""`COUNTS` in SQL, of the same columns."""

# The series of erf below 2.5, the continued fraction of erfc above, innermost term first
# (Abramowitz and Stegun 7.1.6 and 7.1.14). DuckDB has neither function.
_HALF = "sqrt(g2 / 2)"
SQL_P_VALUE = (
    f"CASE WHEN g2 IS NULL THEN NULL WHEN g2 > 1480 THEN 0 WHEN {_HALF} < 2.5 "
    f"THEN 1 - 2 * {_HALF} * exp(-g2 / 2) / sqrt(pi()) * list_reduce(list_prepend(1.0::DOUBLE, "
    "range(80, 0, -1)::DOUBLE[]), lambda s, i: 1 + s * g2 / (2 * i + 1)) "
    f"ELSE exp(-g2 / 2) / sqrt(pi()) / list_reduce(list_prepend({_HALF}, "
    f"range(80, 0, -1)::DOUBLE[]), lambda s, i: {_HALF} + i / 2 / s) END"
)
"""`p_values` of an expression g2, a scalar."""
