"""The examples of a feature that a model is shown, chosen and marked by Delphi's scheme.

To explain: 40 contexts, as many from each tenth of the feature's contexts by maximum. To score: 50
others of the same kind, and 51 contexts in which the feature never fires, known from the whole
store: at random, with a token that it elsewhere fires on, and beside a neighbor. A context is shown
as the 33 tokens around its maximum. Tokens above 0.3 of the example's maximum are marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from featuredb.database import Database
from featuredb.store.names import parse_feature

TENTHS = 10
EXPLAIN, TEST = 40, 50
"""Examples, as `SamplerConfig` of Delphi has them."""

NEGATIVES = ("random", "tokens", "neighbors")
PER_NEGATIVE = 17
FEWEST = 10
"""Contexts of a feature below which there is too little to explain."""

_WINDOW = 16
THRESHOLD = 0.3


class Example(NamedTuple):
    """One context. kind: ``active``, or one of `NEGATIVES`. weight: the contexts it stands for."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    kind: str
    tenth: int
    weight: float

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def marked(self) -> list[bool]:
        """Which tokens are marked."""
        least = THRESHOLD * max(self.activations)
        return [value > least for value in self.activations]

    def spelled(self, marked: Sequence[bool]) -> str:
        """The text, with these tokens between << and >>, consecutive ones together."""
        pieces, inside = [], False
        for token, now in zip(self.tokens, marked, strict=True):
            if now != inside:
                pieces.append("<<" if now else ">>")
                inside = now
            pieces.append(token)
        return "".join(pieces) + (">>" if inside else "")


@dataclass(frozen=True)
class Evidence:
    """What is shown of one feature. share: of the contexts that its SAE has read, those in which it
    fires. strongest: its maximum in the store."""

    name: str
    explain: tuple[Example, ...]
    test: tuple[Example, ...]
    negatives: tuple[Example, ...]
    share: float
    strongest: float


def evidence(database: Database, name: str, seed: int, *, scored: bool) -> Evidence | None:
    """Examples of a feature, None if it fires in too few contexts. scored: with silent ones.

    What explains is the same if it is not scored, so that scores of later test on others.
    """
    sae, number = parse_feature(database.snapshot, name)
    drawn = database.sample_contexts(
        name, EXPLAIN + TEST, TENTHS, seed, by="quantile", window=_WINDOW
    )
    rows = list(drawn)
    if len(rows) < FEWEST:
        return None
    examples = [
        Example(tuple(r.tokens), tuple(r.activations), "active", r.bin, r.bin_weight) for r in rows
    ]
    explain, test = parted(examples)
    negatives = tuple(
        Example(tuple(row.tokens), tuple(row.activations), kind, 0, 1.0)
        for kind in (NEGATIVES if scored else ())
        for row in database.silent_contexts(name, PER_NEGATIVE, kind, seed, window=_WINDOW)
    )
    segments = database.snapshot.segments_of(sae.name)
    read = sum(segment.end_context - segment.first_context for segment in segments)
    ((fires, strongest),) = database.sql(
        "SELECT n_contexts, max_activation FROM features WHERE sae = ? AND feature_id = ?",
        [sae.name, number],
    ).fetchall()
    # Delphi shows the strongest first.
    explain.sort(key=lambda example: -max(example.activations))
    return Evidence(name, tuple(explain), tuple(test), negatives, fires / max(1, read), strongest)


def parted(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Those that explain and those that test: of any number, and of all tenths, the same shares."""
    explain: list[Example] = []
    test: list[Example] = []
    seen = 0
    for tenth in range(1, TENTHS + 1):
        # Drawn at random within a tenth, but sorted: every other one, so that each part has both.
        own = [example for example in examples if example.tenth == tenth]
        seen += len(own)
        # The share of all so far, else tenths of one context each would have none.
        mine = _spread(len(own), -(-seen * EXPLAIN // (EXPLAIN + TEST)) - len(explain))
        explain += [own[i] for i in sorted(mine)]
        test += [own[i] for i in range(len(own)) if i not in mine]
    return explain, test


def _spread(n: int, wanted: int) -> set[int]:
    """`wanted` of n places, evenly spaced."""
    return {(2 * i + 1) * n // (2 * wanted) for i in range(wanted)} if wanted else set()
