"""Which features fire on a text: a stored context, a stored document, or new text."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError, UnknownContextError
from featuredb.render import numbers
from featuredb.render.view import (
    AnyColumn,
    Column,
    CourseColumn,
    Heading,
    Part,
    Passage,
    Passages,
    PlaceColumn,
    View,
)
from featuredb.store.store import Store
from queries.answers import Answer, Row
from queries.arguments import check_choice, check_k, check_text
from queries.catalog.firing import PARAMETERS, statement_in, statement_on
from queries.catalog.summaries import TYPES
from queries.connection import Reader
from queries.in_python import InPython
from queries.question import Macro, Question
from queries.show import feature_sizes, feature_table, number_column, score_column
from queries.specificity import (
    SQL_SPECIFICITY,
    Active,
    ActiveText,
    between,
    most_specific,
)

if TYPE_CHECKING:
    from queries.fires_by_token import FiringByToken
    from queries.shaded_text import ShadedText

Encode = Callable[[Sequence[str]], list[ActiveText]]
"""New texts through the model and the SAEs."""


@dataclass(frozen=True, repr=False)
class Firing(Answer):
    """Features active on a text of `tokens`, the most specific first.

    Columns: rank i32, sae string, feature_id i64, specificity f32, activation f32 (maximum over
    the text), token_index i32, token string, n_tokens i32 (tokens it is active on), activations
    list<f32> (one per token of the text), density f64, max_activation f32, top_tokens
    list<string>, promoted_tokens list<string>, label string (the preferred one, or null).
    """

    kind: ClassVar[str] = "firing"

    tokens: list[str]
    active: int
    """How many features are active on the text, shown or not."""
    by: str = "specificity"
    found: _Found | None = None

    def attributes(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "active": self.active, "by": self.by}

    def by_token(self, k: int = 5, token: int | None = None) -> FiringByToken:
        """The features of each token, with the filters of this answer.

        Args:
            k: Number of features of each token.
            token: Only those of the token of this index.

        Returns:
            Rows by token, then by specificity, or by activation where this answer is not by
            specificity.

        Raises:
            QueryError: There is no such token.
        """
        from queries.fires_by_token import by_token

        return by_token(*self._found(), self.tokens, check_k(k), self.by, token)

    def shaded(self, feature: int | str) -> ShadedText:
        """The text with one feature's activations, shown or not.

        Args:
            feature: A number where the database has one SAE, else ``"sae_name/1234"``.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.shaded_text import shaded_text

        return shaded_text(*self._found(), self.tokens, feature)

    def _found(self) -> _Found:
        if self.found is None:
            raise QueryError("this answer was not made by a database: it has no tokens to show")
        return self.found

    def view(self) -> View:
        """The text, then each feature with its course over the text."""
        tokens = self.tokens
        shown = (
            f"{len(self):,} of {self.active:,} active features" if self.active else "no features"
        )
        count = f"{numbers.plural(len(tokens), 'token')} · {shown}"
        text: list[Part] = [Heading(count), Passages([Passage(tokens, [0.0] * len(tokens))])]
        rows = list(self)
        if not rows:
            return View([text])
        course = CourseColumn(
            "along the text",
            tokens,
            [row.activations for row in rows],
            [row.token_index for row in rows],
            [row.max_activation for row in rows],
        )
        peak = PlaceColumn("peak", [r.token for r in rows], [r.token_index for r in rows])
        columns: list[AnyColumn] = [
            *_scores(rows, self.by),
            course,
            peak,
            Column("tokens", [str(row.n_tokens) for row in rows], right=True),
            feature_sizes(rows)[0],
        ]
        return View([text, [feature_table(rows, columns)]])


class _Found(NamedTuple):
    """Everything that is active on a text, filters applied."""

    store: Store
    active: list[Active]


class Choice(NamedTuple):
    """Which features are shown of those active. See `featuredb.Database.fires_on`."""

    k: int = 20
    by: str = "specificity"
    min_density: float | None = None
    max_density: float | None = None

    def of(self, store: Store, found: ActiveText) -> Firing:
        """The answer. Raises `QueryError` for an invalid choice."""
        check_k(self.k)
        check_choice("by", self.by, ORDERS)
        for bound in (self.min_density, self.max_density):
            if bound is not None and not 0 <= bound <= 1:
                raise QueryError(f"a density is from 0 to 1, not {bound!r}")
        active, tokens = found
        count = sum(len(np.unique(each.feature_id)) for each in active)
        if self.min_density is not None or self.max_density is not None:
            active = between(store, active, self.min_density, self.max_density)
        table = most_specific(store, active, tokens, self.k, self.by)
        return Firing(table, tokens, count, self.by, _Found(store, active))


ORDERS = ("specificity", "activation", "mass")


def _scores(rows: list[Row], by: str) -> list[Column]:
    """What the rows are ordered by, and the activation."""
    if by == "activation":
        return [score_column("active", rows, "activation")]
    active = number_column("active", rows, "activation")
    if by == "mass":
        sums = numbers.aligned([math.fsum(row.activations) for row in rows])
        return [Column("mass", sums, right=True, style="bold"), active]
    return [score_column("specific", rows, "specificity"), active]


def fires_in(reader: Reader, context_id: int, choice: Choice) -> Firing:
    """See `featuredb.Database.fires_in`."""
    store = reader.store
    try:
        context_id = operator.index(context_id)
    except TypeError:
        raise UnknownContextError(f"{context_id!r} is not a context: give its number") from None
    tokens = store.texts.read(store.texts.token_ids(context_id))
    active = [
        Active(sae, *active_in_context(store, sae, context_id)) for sae in store.snapshot.saes
    ]
    return choice.of(store, ActiveText(active, tokens))


def fires_on(store: Store, text: str, choice: Choice, encode: Encode) -> Firing:
    """The features on a text, the most specific first.

    A text that is a stored document's is answered from the store, any other by `encode`.
    token_index counts the text's tokens, BOS not among them. Takes a store, not a `Reader`: SQL
    calls it from inside a connection, which must not be held by what it holds. Raises `QueryError`
    and what `encode` raises.
    """
    given: object = text
    if not isinstance(given, str) and isinstance(given, Iterable):
        raise QueryError("fires_on takes one text: for many at once ask Database.encode")
    document = stored_document(store, text)
    if document is not None:
        return choice.of(store, active_in_document(store, document))
    (found,) = encode([text])
    return choice.of(store, found)


def stored_document(store: Store, text: str) -> int | None:
    """The first document with exactly this text, None if there is none.

    Raises `QueryError` for what is no text.
    """
    check_text(text, "what fires_on is given")
    for corpus in store.snapshot.corpora:
        if corpus.text_hashes is not None:
            document = store.texts.with_text(corpus, text)
            if document is not None:
                return document
    return None


def active_in_document(store: Store, document_id: int) -> ActiveText:
    """What is active on a stored document.

    token_index counts the document's own tokens, BOS not among them. Where windows overlap (a
    stride) a token counts in the first window that has it.
    """
    tokens: list[str] = []
    pieces: dict[str, list[Active]] = {s.name: [] for s in store.snapshot.saes}
    for context_id, skipped, shift in store.texts.document_contexts(document_id):
        ids = store.texts.token_ids(context_id)[skipped:]
        tokens += store.texts.read(ids)
        for sae in store.snapshot.saes:
            token, feature, activation = active_in_context(store, sae, context_id)
            new = token >= skipped
            pieces[sae.name].append(Active(sae, token[new] + shift, feature[new], activation[new]))
    active = [
        Active(
            sae,
            np.concatenate([p.token_index for p in pieces[sae.name]]),
            np.concatenate([p.feature_id for p in pieces[sae.name]]),
            np.concatenate([p.activation.astype(np.float32) for p in pieces[sae.name]]),
        )
        for sae in store.snapshot.saes
        if pieces[sae.name]
    ]
    return ActiveText(active, tokens)


def active_in_context(store: Store, sae: Any, context_id: int) -> tuple[npt.NDArray[Any], ...]:
    """(token_index int64, feature_id, activation), all [n], of one SAE in one context."""
    for segment in store.by_token(sae):
        if segment.segment.first_context <= context_id < segment.segment.end_context:
            token_index, rows = segment.context(context_id)
            return np.repeat(token_index, np.diff(rows.offsets)), rows.feature_id, rows.activation
    return np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.float16)


_ABOUT_FIRES_ON = "the same for the stored document with exactly that text"
_ROW = {
    "rank": "INTEGER",
    "sae": "VARCHAR",
    "feature_id": "BIGINT",
    "specificity": "FLOAT",
    "activation": "FLOAT",
    "token_index": "INTEGER",
    "token": "VARCHAR",
    "n_tokens": "INTEGER",
    "activations": "FLOAT[]",
    **TYPES,
}


IN_PYTHON = InPython(
    Macro(f"fires_on(document_text, {PARAMETERS})", statement_on, about=_ABOUT_FIRES_ON),
    {
        "document_text": "VARCHAR",
        "k": "BIGINT",
        "ranked": "VARCHAR",
        "min_density": "DOUBLE",
        "max_density": "DOUBLE",
    },
    _ROW,
)
"""Of new text too. The catalog's own macro knows stored documents only."""


def fires_on_in_sql(
    store: Store,
    encode: Encode,
    text: str | None,
    k: int,
    ranked: str,
    low: float | None,
    high: float | None,
) -> Firing | None:
    """What `IN_PYTHON` asks."""
    if text is None:
        return None
    return fires_on(store, text, Choice(k, ranked, low, high), encode)


QUESTION = Question(
    "fires_on",
    Firing,
    "fires",
    (
        Macro(
            "specificity(activation, max_activation, count, recorded_tokens, typical)",
            SQL_SPECIFICITY,
            table=False,
            about="how much an activation says about a text: its share of the maximum, by rarity",
        ),
        Macro(
            f"fires_in(context, {PARAMETERS})",
            statement_in,
            about="the most specific features of a stored context, or ranked by activation or mass",
        ),
        IN_PYTHON.macro,
    ),
)
