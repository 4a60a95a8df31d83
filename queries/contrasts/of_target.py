"""Units by a number of theirs: what goes up with it, and what down."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError
from featuredb.render import numbers
from queries.contrasts.asking import Asking
from queries.contrasts.contrasted import Contrast
from queries.contrasts.scores import Scores
from queries.contrasts.strata import LENGTH, numeric, values_of
from queries.contrasts.trend import midranks, trend, trends
from queries.pooled import Int64
from queries.show import counted


def of_target(asking: Asking, column: str) -> Contrast:
    """Rank the units by it. Raises `QueryError` where it is no number or only one."""
    asked, made = asking.asked, asking.made
    values = numeric(values_of(asking.reader, made, column))
    if values is None:
        raise QueryError(
            f"{column} is not a number: for one value against the rest give each={column!r}"
        )
    y = np.full(made.n, np.nan)
    y[made.in_a] = values[made.in_a]
    known = np.flatnonzero(np.isfinite(y))
    if len(known) < 3 or np.ptp(y[known]) == 0:
        raise QueryError(
            f"{column} has {numbers.plural(len(np.unique(y[known])), 'value')} among "
            f"{counted(len(known), asked.unit)}: a trend takes two values and three units"
        )
    y[~np.isfinite(y)] = np.nan
    if len(known) < len(made.in_a):
        missing = len(made.in_a) - len(known)
        asking.notes.append(f"{counted(missing, asked.unit)} without {column} left out")
    if asked.pool != "mean" and column.casefold() != LENGTH:
        _length_trend(asking, y, known)
    ranks = np.zeros(made.n)
    ranks[known] = midranks(y[known])
    parts = [
        trends(list(made.map(asking.reader, sae, lambda p: trend(p, y, ranks))))
        for sae in made.saes
    ]
    every = trends(parts)
    scores = Scores(
        made.saes,
        np.repeat(np.arange(len(parts)), [len(x.active) for x in parts]),
        np.concatenate([np.arange(len(x.active)) for x in parts]),
        every.active,
        every.evidence(len(known)),
        every.least_p,
        {
            "share": every.active / len(known),
            "spearman": every.spearman,
            "t": every.t,
            "separation": every.separation,
            "p": every.p(len(known)),
        },
    )
    tested = scores.tested(len(known), len(known), *asking.bounds())
    null = f"{asking.pooled} does not go with {column} (Spearman)"
    rows = scores.best(tested, asked.k)
    called = f"{made.called[0]} by {column}"
    return asking.made_of(scores, tested, rows, called, "", len(known), 0, null, None)


def _length_trend(asking: Asking, y: npt.NDArray[np.float64], known: Int64) -> None:
    r = np.corrcoef(midranks(y[known]), midranks(asking.made.length[known]))[0, 1]
    if abs(r) > 0.2:
        asking.notes.append(
            f"it goes with length (Spearman {r:+.2f}): a feature may only read length, so "
            "compare with --pool mean"
        )
