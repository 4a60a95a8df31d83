"""Where several features fire: tokens, contexts or documents, by sets, distance and order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.render.view import Heading, Part, Passages, View
from featuredb.store.names import BAD_LEAST, BAD_UNIT, BAD_WITHIN
from featuredb.store.positions import context_of, token_of
from featuredb.store.recorded import token_ids_at
from featuredb.store.store import Store
from queries.answers import FOR_DISPLAY, Answer
from queries.arguments import check_k, check_text, check_window, is_whole
from queries.conditions import Condition, Places
from queries.connection import Reader
from queries.filters import Held, held
from queries.matching import UNITS, Conditions, Matched, best_of_each_unit
from queries.peaks import Peak, passages, peak_columns
from queries.question import Question
from queries.sets import MACROS
from queries.show import label_table

_NAMES = pa.list_(pa.field("element", pa.string()))
_VALUES = pa.list_(pa.field("element", pa.float32()))


@dataclass(frozen=True, repr=False)
class Matches(Answer):
    """Tokens, contexts or documents that satisfy conditions, by strength descending, ties by place.

    Columns: rank i32, context_id i64, document_id i64, strength f32, token_index i32, token string,
    window_start i32, tokens list<string>, activations list<f32> (per token, the largest of the
    features' relative to their stored maxima), features list<string> (the conditions of `all`,
    then of `any`), feature_activations list<f32> (of each the largest in reach, 0 where it does not
    hold), then the document's source and metadata. A context or a document has one row, its
    strongest place.

    strength: of the features of `all` the smallest activation relative to the feature's stored
    maximum, since a match is as strong as its weakest part. Without `all`, the largest of `any`.
    asked: the conditions. unit: what matches. total: how many do, of which the rows are the first.
    labels: of the features that have one, by name.
    """

    kind: ClassVar[str] = "matches"

    asked: str
    unit: str
    total: int
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    special: frozenset[str] = field(default=frozenset(), kw_only=True, metadata=FOR_DISPLAY)

    def view(self) -> View:
        """What was asked, the features' labels, how many match, and the first of them."""
        count = numbers.plural(self.total, self.unit) if self.total else f"no {self.unit}"
        more = f" · the strongest {len(self)}" if len(self) < self.total else ""
        heading: list[Part] = [Heading("find ", self.asked, f" · {count}{more}")]
        heading += label_table(self.labels)
        return View([heading, [self.passages()]] if len(self) else [heading])

    def passages(self) -> Passages:
        """The places, tokens shaded by the feature that is most active relative to its maximum."""
        return passages(list(self), 1.0, self.special, "strength")


def find(
    reader: Reader,
    every: Sequence[int | str] = (),
    some: Sequence[int | str] = (),
    none: Sequence[int | str] = (),
    unit: str = "token",
    within: int | None = None,
    ordered: bool = False,
    at_least: int | None = None,
    where: str | None = None,
    token: str | None = None,
    k: int = 20,
    window: int = 16,
) -> Matches:
    """See `featuredb.Database.find`, whose `all` and `any` are `every` and `some` here."""
    store = reader.store
    k, window = check_k(k), check_window(window)
    groups = [
        [Condition.parse(store, condition) for condition in _listed(group, name)]
        for group, name in ((every, "all"), (some, "any"), (none, "none"))
    ]
    _check(groups, unit, within, ordered, at_least)
    places = [[condition.places(store) for condition in group] for group in groups]
    if where is not None:
        holds = held(reader, where)
        places = [[_chosen(store, p, holds) for p in group] for group in places]
    if token is not None:
        leading = places[0] or places[1]
        wanted = _tokens_like(store, token)
        for i in range(1 if places[0] else len(leading)):
            leading[i] = _on_tokens(store, leading[i], wanted)
    every_, some_, none_ = places
    conditions = Conditions(every_, some_, none_, at_least or 1, unit, within, ordered)
    matched = conditions.matched(store)
    shown = [*groups[0], *groups[1]]
    maxima = np.array([c.maximum(store) for c in shown], np.float32)
    shares = matched.activations / maxima
    strength = shares[:, : len(groups[0])].min(axis=1) if groups[0] else shares.max(axis=1)
    order = np.lexsort((matched.position, -strength))
    if unit != "token":
        order = best_of_each_unit(matched.key, order)
    scaled = [
        Places(p.position, p.activation / maximum)
        for p, maximum in zip([*places[0], *places[1]], maxima, strict=True)
    ]
    first = order[:k]
    table = _table(store, matched, strength, first, scaled, window)
    names = pa.array([[c.spelled for c in shown]] * len(first), _NAMES)
    values = pa.array(matched.activations[first].tolist(), _VALUES)
    at = table.column_names.index("activations") + 1
    table = table.add_column(at, "features", names).add_column(
        at + 1, "feature_activations", values
    )
    asked = _asked(groups, within, ordered, at_least, token, where)
    return Matches(
        table,
        asked=asked,
        unit=unit,
        total=len(order),
        labels=store.labels.named((c.sae, c.feature) for group in groups for c in group),
        special=store.texts.special,
    )


def _listed(group: Sequence[int | str], name: str) -> Sequence[int | str]:
    """The conditions of one option. One of them alone is meant as a list of one."""
    if isinstance(group, int | np.integer | str):
        return [group]
    if not isinstance(group, Sequence | np.ndarray):
        raise QueryError(f"{name} must be a list of features, not {type(group).__name__}")
    return list(group)


def _check(
    groups: list[list[Condition]],
    unit: str,
    within: int | None,
    ordered: bool,
    at_least: int | None,
) -> None:
    every, some, _ = groups
    if not every and not some:
        raise QueryError(
            "give at least one feature that fires, in all or any: where others do not is nearly "
            "everywhere, and silent_contexts draws from that"
        )
    if unit not in UNITS:
        raise QueryError(BAD_UNIT.format(unit=unit))
    if within is not None and (not is_whole(within) or within < 0):
        raise QueryError(BAD_WITHIN.format(within=within))
    if ordered and len(every) < 2:
        raise QueryError("an order takes two features or more in all")
    if at_least is not None and not (is_whole(at_least) and 1 <= at_least <= len(some)):
        raise QueryError(BAD_LEAST.format(least=at_least, n=len(some)))


def _chosen(store: Store, places: Places, holds: Held) -> Places:
    bits = store.snapshot.position_bits
    return places[holds(context_of(places.position, bits), token_of(places.position, bits))]


def _tokens_like(store: Store, pattern: str) -> npt.NDArray[np.bool_]:
    """Which token ids are the text, begin with it (`bri*`), or match `/an expression/`."""
    check_text(pattern, "token")
    texts = store.texts.token_texts
    if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
        try:
            found = [bool(re.search(pattern[1:-1], text)) for text in texts]
        except re.error as error:
            raise QueryError(f"{pattern} is no regular expression: {error}") from None
    elif len(pattern) > 1 and pattern.endswith("*"):
        found = [text.startswith(pattern[:-1]) for text in texts]
    else:
        found = [text == pattern for text in texts]
    if not any(found):
        raise QueryError(
            f"no token is {pattern!r}: mind the space before a word, as in ' bridge', or give the "
            "beginning of one, ' bri*', or an expression, '/brid/'"
        )
    return np.array(found)


def _on_tokens(store: Store, places: Places, wanted: npt.NDArray[np.bool_]) -> Places:
    return places[wanted[token_ids_at(store, places.position)]]


def _table(
    store: Store,
    matched: Matched,
    strength: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    scaled: list[Places],
    window: int,
) -> pa.Table:
    bits = store.snapshot.position_bits
    peaks = []
    for row in rows.tolist():
        position = int(matched.position[row])
        context = position >> bits
        indexes, values = _shades(scaled, context << bits, (context + 1) << bits)
        at = int(token_of(position, bits))
        peaks.append(Peak(context, float(strength[row]), at, token_of(indexes, bits), values))
    columns = peak_columns(store, peaks, window, 0)
    return pa.table({"strength" if n == "activation" else n: c for n, c in columns.items()})


def _shades(
    scaled: list[Places], first: int, end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Positions from `first` to before `end` where any is active, and the largest of them there."""
    positions, values = [], []
    for places in scaled:
        low, high = np.searchsorted(places.position, [first, end])
        positions.append(places.position[low:high])
        values.append(places.activation[low:high])
    every = np.concatenate(positions)
    place, back = np.unique(every, return_inverse=True)
    largest = np.zeros(len(place), np.float32)
    np.maximum.at(largest, back, np.concatenate(values))
    return place, largest


def _asked(
    groups: list[list[Condition]],
    within: int | None,
    ordered: bool,
    at_least: int | None,
    token: str | None,
    where: str | None,
) -> str:
    """The conditions in words."""
    every, some, none = ([c.spelled for c in group] for group in groups)
    parts = [(", then " if ordered else " and ").join(every)] if every else []
    if some:
        parts.append(f"{at_least or 1} of {', '.join(some)}")
    if none:
        parts.append(f"without {' or '.join(none)}")
    if within is not None:
        parts.append(f"within {numbers.plural(within, 'token')}")
    if token is not None:
        parts.append(f"on the token {token!r}")
    if where is not None:
        parts.append(f"where {where}")
    return ", ".join(parts)


QUESTION = Question("find", Matches, "find", MACROS)
