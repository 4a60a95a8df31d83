"""Top contexts of many features at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render.view import Part, View
from queries.answers import FOR_DISPLAY, Answer
from queries.arguments import several
from queries.connection import Reader
from queries.question import Question
from queries.top_contexts import TopContexts, top_contexts


@dataclass(frozen=True, repr=False)
class TopContextsOfMany(Answer):
    """The top contexts of several features, one feature after the other as they were asked for.

    Columns: those of `TopContexts`. `max_activations`: of each feature, by its name, the maximum
    over the whole store.
    """

    kind: ClassVar[str] = "top_contexts_of_many"

    max_activations: Mapping[str, float]
    labels: Mapping[str, str | None] = field(default_factory=dict, kw_only=True)
    special: frozenset[str] = field(default=frozenset(), kw_only=True, metadata=FOR_DISPLAY)

    def view(self) -> View:
        """What each feature's own answer shows."""
        sections: list[list[Part]] = []
        first = 0
        counts = Counter((row.sae, row.feature_id) for row in self)
        for feature, maximum in self.max_activations.items():
            sae, _, number = feature.rpartition("/")
            rows = counts[sae, int(number)]
            part = TopContexts(
                self.table.slice(first, rows),
                sae,
                int(number),
                maximum,
                label=self.labels.get(feature),
                special=self.special,
            )
            sections += [list(parts) for parts in part.view()]
            first += rows
        return View(sections)


def top_contexts_of(
    reader: Reader, feature: int | str | Iterable[int | str], *args: Any, **options: Any
) -> TopContexts | TopContextsOfMany:
    """See `featuredb.Database.top_contexts`: of one feature, or of each of many."""
    given = several(feature)
    if given is None:
        return top_contexts(reader, cast("int | str", feature), *args, **options)
    answers: dict[str, TopContexts] = {}
    for each in given:
        answer = top_contexts(reader, each, *args, **options)
        answers[answer.feature] = answer
    if not answers:
        raise QueryError("no feature is named: give at least one")
    table = pa.concat_tables([answer.table for answer in answers.values()])
    maxima = {name: answer.max_activation for name, answer in answers.items()}
    labels = {name: answer.label for name, answer in answers.items()}
    return TopContextsOfMany(table, maxima, labels=labels, special=reader.store.texts.special)


QUESTION = Question("top_contexts", TopContextsOfMany)
