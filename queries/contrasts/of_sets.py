"""Two sets of units, one against the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError
from featuredb.render import numbers
from queries.contrasts.asking import Asking
from queries.contrasts.contrasted import Contrast
from queries.contrasts.two_sets import Sides
from queries.show import counted

_LONGER = 1.25
_HELD_OUT = 0.3


def of_sets(asking: Asking) -> Contrast:
    """Compare them, alike in covariates and on units held out where that is asked."""
    asked, made = asking.asked, asking.made
    side = asking.side(made.in_a, made.in_b)
    smaller = min(len(made.in_a), len(made.in_b))
    stratum = asking.alike(smaller)
    null = asking.test_of(f"{asking.pooled} is as likely larger in A as in B")
    if stratum is not None:
        _alone(asking, side, stratum)
    elif asked.pool != "mean":
        _lengths(asking)
    if asked.holdout is not None or asked.probe is not None:
        return _held_out(asking, side, stratum, null)
    sides = Sides.of(side, stratum)
    scores = asking.scored(sides)
    tested = scores.tested(len(made.in_a) + len(made.in_b), smaller, *asking.bounds())
    return asking.answer(scores, tested, scores.best(tested, asked.k), sides, null)


def _held_out(asking: Asking, side: npt.NDArray[np.uint8], stratum: Any, null: str) -> Contrast:
    """Features are chosen on one part of each set, and the figures are of the other."""
    asked, made = asking.asked, asking.made
    holdout = _HELD_OUT if asked.holdout is None else asked.holdout
    train, held = _split(side, holdout, asked.seed)
    sides = Sides.of(np.where(train, side, 0).astype(np.uint8), stratum)
    other = Sides.of(np.where(held, side, 0).astype(np.uint8), stratum)
    if min(sides.n.sum(axis=1).min(), other.n.sum(axis=1).min()) < 2:
        raise QueryError(f"too few {asked.unit}s to hold out {holdout:g} of each set")
    scores = asking.scored(sides)
    n_a, n_b = sides.n.sum(axis=1)
    tested = scores.tested(int(n_a + n_b), int(min(n_a, n_b)), *asking.bounds())
    rows = scores.best(tested, asked.k)
    asking.notes.append(
        f"features were chosen on {numbers.count(int(n_a + n_b))} {asked.unit}s; the figures, "
        f"p and q are of the {numbers.count(int(held.sum()))} held out (seed {asked.seed})"
    )
    figures = asking.scored(other)
    chosen = np.zeros(len(tested), np.bool_)
    chosen[rows] = True
    probe = None
    if asked.probe is not None:
        from queries.contrasts.probe import probe as fit

        probe = fit(asking.reader, made, scores, tested, side, train, held, asked.probe)
    return asking.answer(figures, chosen, rows, other, null, probe)


def _split(
    side: npt.NDArray[np.uint8], share: float, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(kept, held out) bool per unit: so much of each set, drawn by the seed."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(side), np.bool_)
    for which in (1, 2):
        places = np.flatnonzero(side == which)
        held[rng.permutation(places)[: round(share * len(places))]] = True
    return (side > 0) & ~held, held


def _alone(asking: Asking, side: npt.NDArray[np.uint8], stratum: Any) -> None:
    """Say how many units have none of the other set in their stratum."""
    n = Sides.of(side, stratum).n
    useless = int(n[:, (n == 0).any(axis=0)].sum())
    if useless == int(n.sum()):
        raise QueryError(
            f"A and B have no {asking.asked.unit}s alike in {' and '.join(asking.asked.covariate)}"
        )
    if useless:
        asking.notes.append(
            f"{counted(useless, asking.asked.unit)} of which the other set has none alike count "
            "for nothing"
        )


def _lengths(asking: Asking) -> None:
    """Say where one set has longer units: most features fire more on those."""
    a, b = (float(np.median(asking.made.length[p])) for p in (asking.made.in_a, asking.made.in_b))
    if min(a, b) > 0 and not 1 / _LONGER < a / b < _LONGER:
        tokens = "tokens" if asking.on is None else "of those tokens"
        many, few = (f"{n:,.0f}" if n >= 10 else f"{n:g}" for n in (a, b))
        asking.notes.append(
            f"A has {many} {tokens} per {asking.asked.unit} and B {few} (medians): a "
            "feature may only read length, so compare with --covariate length"
        )
