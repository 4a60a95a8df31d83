"""Units of A beside those of B that have the same value of a column."""

from __future__ import annotations

import numpy as np

from featuredb.errors import QueryError
from queries.contrasts.asking import Asking
from queries.contrasts.contrasted import Contrast
from queries.contrasts.paired import SignedRank, UnitPairs, signed_rank
from queries.contrasts.scores import of_two
from queries.contrasts.strata import values_of
from queries.contrasts.two_sets import Sides, difference, joined
from queries.show import counted


def of_pairs(asking: Asking, column: str) -> Contrast:
    """Test the differences within pairs. Raises `QueryError` where a key is there twice."""
    asked, made = asking.asked, asking.made
    keys = values_of(asking.reader, made, column)
    by_key: list[dict[str, int]] = []
    for name, places in (("A", made.in_a), ("B", made.in_b)):
        own: dict[str, int] = {}
        for place in places.tolist():
            if (key := keys[place]) is None:
                continue
            if own.setdefault(repr(key), place) != place:
                raise QueryError(
                    f"{column} does not pair: {name} has {key!r} more than once, so narrow the "
                    "sets, or pair by another column"
                )
        by_key.append(own)
    both = [key for key in by_key[0] if key in by_key[1]]
    if not both:
        raise QueryError(f"{column} does not pair: no value of it is in A and in B")
    pair = np.full(made.n, -1, np.int64)
    sign = np.zeros(made.n, np.int8)
    for own, one in zip(by_key, (1, -1), strict=True):
        places = np.array([own[key] for key in both])
        pair[places] = np.arange(len(both))
        sign[places] = one
    left = len(made.in_a) + len(made.in_b) - 2 * len(both)
    if left:
        asking.notes.append(f"{counted(left, asked.unit)} without a partner left out")
    sides = Sides.of(np.where(sign == 1, 1, np.where(sign == -1, 2, 0)).astype(np.uint8))
    matched = UnitPairs(pair, sign)
    parts, signed = [], []
    for sae in made.saes:
        pieces = list(
            made.map(asking.reader, sae, lambda p: (difference(p, sides), signed_rank(p, matched)))
        )
        parts.append(joined([d for d, _ in pieces]))
        signed += [SignedRank(*map(np.concatenate, zip(*(s for _, s in pieces), strict=True)))]
    scores = of_two(made.saes, parts, sides, signed)
    tested = scores.tested(2 * len(both), len(both), *asking.bounds())
    null = f"in pairs of one {column}, A less B of {asking.pooled} is as likely above 0 as below"
    return asking.answer(scores, tested, scores.best(tested, asked.k), sides, f"{null} (Wilcoxon)")
