"""The features of a contrast with their figures, tested, ordered and as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.association import nullable, q_values
from queries.contrasts.paired import SignedRank
from queries.contrasts.two_sets import Difference, Sides, joined
from queries.pooled import Int64
from queries.tails import two_sided

Float64 = npt.NDArray[np.float64]

FEWEST = 5
"""Units that a feature is active in, at least, to be tested."""

SHARE = 0.01
"""Or so many of the smaller set's units, where that is more."""


OF_TWO_SETS = (
    "share_a",
    "share_b",
    "difference",
    "log_odds",
    "log_odds_low",
    "auroc",
    "auroc_low",
    "auroc_high",
    "p",
)
"""The figures of two sets, in their order."""


@dataclass(frozen=True)
class Scores:
    """Every feature of the SAEs compared, one after another. All [m].

    sae: index in `saes`. columns: float64, NaN where undefined, with p among them. evidence: what
    the order is by: a standard normal deviate. q is of its p, but of `least_p` where that is more.
    active: units it is active in.
    """

    saes: Sequence[Sae]
    sae: Int64
    feature: Int64
    active: Float64
    evidence: Float64
    least_p: Float64
    columns: Mapping[str, Float64]

    def tested(self, n: int, smaller: int, low: float | None, high: float) -> npt.NDArray[np.bool_]:
        """Within the coverage bounds. They are of A and B together, so the test is still fair.

        n: units. smaller: of the smaller set. low, high: shares of n, low None for `FEWEST`.
        """
        least = max(FEWEST, SHARE * smaller) if low is None else max(1.0, low * n)
        return (self.active >= least) & (self.active <= high * n)

    def best(self, tested: npt.NDArray[np.bool_], k: int) -> Int64:
        """The k features of most evidence, ties by SAE and feature id."""
        rows = np.flatnonzero(tested)
        keys = (self.feature[rows], self.sae[rows], -np.abs(self.evidence[rows]).round(9))
        return rows[np.lexsort(keys)[:k]]

    def safe_p(self, tested: npt.NDArray[np.bool_]) -> Float64:
        """The p-values of those tested that q is of."""
        return np.maximum(two_sided(self.evidence[tested]), self.least_p[tested])

    def q(self, tested: npt.NDArray[np.bool_]) -> Float64:
        """p adjusted over those tested, NaN for the others."""
        q = np.full(len(tested), np.nan)
        q[tested] = q_values(self.safe_p(tested))
        return q

    def table(self, store: Store, rows: Int64, q: Float64) -> pa.Table:
        """The answer's rows, in this order. q: of every feature."""
        names = [self.saes[i] for i in self.sae[rows].tolist()]
        numbers = self.feature[rows].tolist()
        places = [store.features.row(s, f) for s, f in zip(names, numbers, strict=True)]
        columns: dict[str, Any] = {
            "rank": pa.array(range(1, len(rows) + 1), pa.int32()),
            "sae": pa.array([s.name for s in names], pa.string()),
            "feature_id": pa.array(numbers, pa.int64()),
        }
        columns |= {name: nullable(values[rows]) for name, values in self.columns.items()}
        columns["q"] = nullable(q[rows])
        about = store.features.summaries(places)
        columns |= {name: about.column(name) for name in ("top_tokens", "label")}
        return pa.table(columns)


def of_two(
    saes: Sequence[Sae],
    parts: Sequence[Difference],
    sides: Sides,
    signed: Sequence[SignedRank] | None = None,
) -> Scores:
    """The figures of two sets. signed: `paired.signed_rank` of pairs, by SAE."""
    each = [len(part.auroc) for part in parts]
    d = joined(parts)
    if signed is None:
        evidence, p, least_p = d.corrected(sides), d.p(sides), d.least_p()
    else:
        evidence, least_p = (np.concatenate(column) for column in zip(*signed, strict=True))
        p = two_sided(evidence)
    n_a, n_b = sides.n.sum(axis=1)
    low, high = d.interval()
    share_a, share_b = d.active_a / n_a, d.active_b / n_b
    odds = np.zeros_like(share_a)
    figures = share_a, share_b, share_a - share_b, odds, odds.copy(), d.auroc, low, high, p
    columns = dict(zip(OF_TWO_SETS, figures, strict=True))
    return Scores(
        saes,
        np.repeat(np.arange(len(saes)), each),
        np.concatenate([np.arange(n) for n in each]),
        d.active_a + d.active_b,
        evidence,
        least_p,
        columns,
    )


def with_log_odds(scores: Scores, n_a: float, n_b: float, tests: int) -> Scores:
    """Fill in the log odds of firing in A against B, and their bound for so many tests.

    With half a unit added to each of the four counts (Haldane, 1956; Anscombe, 1956) and Woolf's
    standard error (1955). The bound is on the side of 0, 0 where the interval has it, at 95 % for
    all tests together (Bonferroni): the rank of Embedding Atlas's feature list.
    """
    a = scores.columns["share_a"] * n_a + 0.5
    b = scores.columns["share_b"] * n_b + 0.5
    c, d = n_a + 1 - a, n_b + 1 - b
    odds = np.log(a * d / (b * c))
    error = np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, tests))
    low = np.sign(odds) * np.maximum(np.abs(odds) - z * error, 0)
    columns = {**scores.columns, "log_odds": odds, "log_odds_low": low}
    return replace(scores, columns=columns)
