"""Every value of a column against the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from queries.association import q_values
from queries.contrasts.asking import Asking
from queries.contrasts.contrasted import Contrast
from queries.contrasts.scores import Scores, with_log_odds
from queries.contrasts.strata import values_of
from queries.contrasts.two_sets import Sides
from queries.show import counted

_MOST_VALUES = 200


def of_values(asking: Asking, column: str) -> Contrast:
    """Compare each with the rest. q is adjusted over all of them."""
    asked, made = asking.asked, asking.made
    values = values_of(asking.reader, made, column)[made.in_a]
    named = np.array(["" if v is None else str(v) for v in values], object)
    known = np.array([v is not None for v in values])
    distinct = sorted(set(named[known].tolist()))
    if not 2 <= len(distinct) <= _MOST_VALUES:
        raise QueryError(
            f"{column} has {numbers.plural(len(distinct), 'value')}: one against the rest "
            f"takes 2 to {_MOST_VALUES}. A number is a target"
        )
    n_values = len(distinct)
    if not known.all():
        missing = int((~known).sum())
        asking.notes.append(f"{counted(missing, asked.unit)} without {column} left out")
    all_scores, all_tested, sizes = [], [], []
    for value in list(distinct):
        own = made.in_a[known & (named == value)]
        side = asking.side(own, made.in_a[known & (named != value)])
        smaller = min(len(own), int(known.sum()) - len(own))
        sides = Sides.of(side, asking.alike(smaller))
        if not (sides.n > 0).all(axis=0).any():
            distinct.remove(value)
            continue
        scores = asking.scored(sides)
        all_scores.append(scores)
        all_tested.append(scores.tested(int(known.sum()), smaller, *asking.bounds()))
        sizes.append(sides)
    if not distinct:
        raise QueryError(
            f"no value of {column} has {asked.unit}s alike in {' and '.join(asked.covariate)} to "
            "those of another"
        )
    if len(distinct) < n_values:
        left = numbers.plural(n_values - len(distinct), "value")
        asking.notes.append(f"{left} of which the others have none alike left out")
    # One adjustment over all values, as the answer has them all.
    q = _joint_q(all_scores, all_tested)
    tests = int(sum(t.sum() for t in all_tested))
    tables, shown = [], 0
    for value, scores, tested, sides, own_q in zip(
        distinct, all_scores, all_tested, sizes, q, strict=True
    ):
        rows = scores.best(tested, asked.k)
        n_a, n_b = sides.n.sum(axis=1)
        table = with_log_odds(scores, n_a, n_b, tests).table(asking.reader.store, rows, own_q)
        for name, cell in (("n", int(n_a)), ("value", value)):
            table = table.add_column(0, name, pa.array([cell] * len(rows)))
        tables.append(table)
        shown += int((own_q[tested] < 0.05).sum())
    null = f"{asking.pooled} is as likely larger at a value of {column} as at the others"
    return Contrast(
        pa.concat_tables(tables),
        a=f"each {column}",
        b="the rest",
        n_a=int(known.sum()),
        n_b=0,
        unit=asked.unit,
        pool=asked.pool,
        null=asking.test_of(null),
        tested=tests,
        found=shown,
        notes=tuple(asking.notes),
        probe=None,
        contexts=pa.table({}),
    )


def _joint_q(
    scores: Sequence[Scores], tested: Sequence[npt.NDArray[np.bool_]]
) -> list[npt.NDArray[np.float64]]:
    """q of every feature of several contrasts, adjusted over all that they tested."""
    p = [s.safe_p(t) for s, t in zip(scores, tested, strict=True)]
    q = np.split(q_values(np.concatenate(p)), np.cumsum([len(x) for x in p])[:-1])
    result = []
    for own, which in zip(q, tested, strict=True):
        full = np.full(len(which), np.nan)
        full[which] = own
        result.append(full)
    return result
