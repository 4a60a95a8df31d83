"""What tells some texts from others: every feature's pooled activation in A against B.

The unit is the document, not the token: tokens of one document are not independent, and a test that
counts them finds differences between halves of one corpus drawn at random (docs/benchmarks.md).
`queries.contrasts` has the ways to compare and their statistics. Order: evidence descending, ties
by SAE in the snapshot's order, then feature id.
"""

from __future__ import annotations

from collections.abc import Sequence

from featuredb.errors import ClosedError
from featuredb.store.names import sae_named
from queries.connection import Reader
from queries.contrasts.asked import Asked
from queries.contrasts.asking import Asking
from queries.contrasts.chosen import WORDS, compared
from queries.contrasts.contrasted import Contrast
from queries.contrasts.of_pairs import of_pairs
from queries.contrasts.of_sets import of_sets
from queries.contrasts.of_target import of_target
from queries.contrasts.of_values import of_values
from queries.contrasts.scores import OF_TWO_SETS
from queries.contrasts.sql import MACROS
from queries.fires import Encode
from queries.in_python import InPython
from queries.question import Question
from queries.specificity import ActiveText
from queries.tokens_of import TokensOf
from queries.units import units_of


def contrast(reader: Reader, asked: Asked, encode: Encode) -> Contrast:
    """See `featuredb.Database.contrast`."""
    on = None if asked.on is None else TokensOf(reader.store, asked.on)
    units = units_of(reader.store, asked.unit, on)
    snapshot = reader.snapshot
    saes = snapshot.saes if asked.sae is None else (sae_named(snapshot, asked.sae),)
    everything = asked.a is None
    a = "all" if everything else asked.a
    if everything or asked.target is not None:
        made = compared(reader, a, None, units, asked.pool, saes, encode, alone=True)
    else:
        made = compared(reader, a, asked.b, units, asked.pool, saes, encode)
    asking = Asking(reader, asked, made, encode)
    if asked.target is not None:
        return of_target(asking, asked.target)
    if asked.each is not None:
        return of_values(asking, asked.each)
    if asked.paired is not None:
        return of_pairs(asking, asked.paired)
    return of_sets(asking)


IN_PYTHON = InPython(
    MACROS[0],
    {"a": "VARCHAR", "b": "VARCHAR", "k": "BIGINT", "min_share": "DOUBLE"},
    {
        "rank": "INTEGER",
        "sae": "VARCHAR",
        "feature_id": "BIGINT",
        **dict.fromkeys((*OF_TWO_SETS, "q"), "DOUBLE"),
        "top_tokens": "VARCHAR[]",
        "label": "VARCHAR",
    },
)
"""Some 25 times as fast as the catalog's macro, which another client asks."""


def contrast_in_sql(
    reader: Reader, a: str | None, b: str | None, k: int, min_share: float | None
) -> Contrast:
    """What `IN_PYTHON` asks. reader: a weak reference."""

    def condition(given: str | None) -> str | None:
        # A condition on stored documents and nothing else: SQL reads no file of texts.
        if given is None or not (given.startswith("@") or given.strip().lower() in WORDS):
            return given
        return f"({given})"

    try:
        asked = Asked(
            "" if a is None else condition(a), condition(b), None, None, "document", "max", k,
            None, None, min_share, 1.0, (), None, None, 0,
        )  # fmt: skip
        return contrast(reader, asked, _no_texts)
    except ReferenceError:
        raise ClosedError("the database of this relation is closed: open it again") from None


def _no_texts(texts: Sequence[str]) -> list[ActiveText]:
    raise AssertionError(f"{len(texts)} texts where there are conditions alone")


QUESTION = Question("contrast", Contrast, "contrast", MACROS)
