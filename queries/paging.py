"""Which of many contexts, in their order, an answer shows: a page, without repetitions if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featuredb.store.corpora import Texts


@dataclass(frozen=True)
class Paging:
    """`k` contexts after the first `offset`.

    Contexts come in their order. One is left out if its document (per_document) or its text
    (distinct) has been shown before, be it on an earlier page. Two contexts are one text where all
    their tokens are equal.
    """

    k: int
    offset: int = 0
    per_document: bool = False
    distinct: bool = False

    @property
    def end(self) -> int:
        """How many have to be found."""
        return self.offset + self.k

    @property
    def repeats(self) -> bool:
        """Whether contexts are shown whatever came before."""
        return not (self.per_document or self.distinct)

    def chosen(self, texts: Texts, context_ids: Sequence[int]) -> list[int]:
        """Places in `context_ids`, which are the first by order, of those shown up to `end`."""
        if self.repeats:
            return list(range(min(self.end, len(context_ids))))
        texts.fetch(context_ids)
        documents: set[int] = set()
        shown: set[bytes] = set()
        places: list[int] = []
        for place, context_id in enumerate(context_ids):
            if len(places) == self.end:
                break
            if self.per_document and (document := texts.document_of(context_id)) in documents:
                continue
            if self.distinct and (text := texts.token_ids(context_id).tobytes()) in shown:
                continue
            if self.per_document:
                documents.add(document)
            if self.distinct:
                shown.add(text)
            places.append(place)
        return places
