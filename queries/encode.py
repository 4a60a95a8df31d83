"""The activations of many texts: per token, or pooled per text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.render.view import Heading, Records, View
from featuredb.store.store import Store
from queries.answers import FOR_DISPLAY, Answer
from queries.arguments import check_choice, check_k, check_text
from queries.fires import Encode, active_in_document, stored_document
from queries.question import Question
from queries.show import feature_name
from queries.specificity import ActiveText
from queries.tokens_of import TokensOf

Pool = Literal["max", "sum", "mean"]
Texts: TypeAlias = Iterable[str] | Iterable[tuple[str | None, str]] | Mapping[str, str]

_TEXTS = 256
_CHARACTERS = 1 << 18
"""Texts, and their characters, that are run and held at a time."""

_SHOWN = 100


@dataclass(frozen=True, repr=False)
class Encoded(Answer):
    """Activations on texts. Rows by text, token, SAE and feature id.

    Columns: text_index i64 (from 0), text_id string (given with the text, else null), token_index
    i32 and token string (of the text's tokens, without BOS), sae string, feature_id i64,
    activation f32. With `pool` no token columns, and n_tokens i32 after the activation: tokens on
    which the feature is active.
    """

    kind: ClassVar[str] = "encoded"

    pool: Pool | None
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True, metadata=FOR_DISPLAY)
    """Of the features of the first rows, by name."""

    def view(self) -> View:
        """The first rows, with labels."""
        shown = self.table.slice(0, _SHOWN)
        if self.labels:
            names = map(feature_name, self[:_SHOWN])
            shown = shown.append_column("label", pa.array(map(self.labels.get, names), pa.string()))
        more = len(self) - len(shown)
        ending = [Heading(f"… {numbers.plural(more, 'more row')}")] if more else []
        return View([[Records(shown), *ending]])


class Named(NamedTuple):
    number: int
    id: str | None
    text: str


def encode(store: Store, texts: Texts, pool: Pool | None, k: int | None, run: Encode) -> Encoded:
    """See `featuredb.Database.encode`. run: the model and the SAEs."""
    tables = [each.table for each in encode_batches(store, texts, pool, k, run)]
    return _labeled(store, Encoded(pa.concat_tables(tables), pool=pool))


def encode_batches(
    store: Store, texts: Texts, pool: Pool | None, k: int | None, run: Encode
) -> Iterator[Encoded]:
    """See `featuredb.Database.encode_batches`. run: the model and the SAEs."""
    if pool is not None:
        check_choice("pool", pool, get_args(Pool))
    if k is not None:
        check_k(k)
    if isinstance(texts, str):
        raise QueryError("encode takes many texts: give a list, or ask fires_on of one")
    return _encoded(store, texts, pool, k, run)


def _encoded(
    store: Store, texts: Texts, pool: Pool | None, k: int | None, run: Encode
) -> Iterator[Encoded]:
    for group in _groups(_named(texts)):
        table = _table(group, active_on(store, group, run), pool, k)
        yield _labeled(store, Encoded(table, pool=pool))


def _labeled(store: Store, answer: Encoded) -> Encoded:
    """With the labels of the features that `view` shows."""
    shown = dict.fromkeys((row.sae, row.feature_id) for row in answer[:_SHOWN])
    named = ((store.snapshot.sae(sae), number) for sae, number in shown)
    return replace(answer, labels=store.labels.named(named))


def active_on(store: Store, group: Sequence[Named], run: Encode) -> list[ActiveText]:
    """What is active on each text: of a stored one from the store, of the others by `run`."""
    documents = [stored_document(store, each.text) for each in group]
    new = [e.text for e, document in zip(group, documents, strict=True) if document is None]
    encoded = iter(run(new) if new else [])
    return [
        next(encoded) if document is None else active_in_document(store, document)
        for document in documents
    ]


def pooled_texts(
    store: Store, texts: Texts, pool: Pool, run: Encode, on: TokensOf | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """(tokens, rows of `encode` with `pool`) of each text. on: of these tokens alone."""
    empty = _SCHEMAS[True].empty_table()
    for group in _groups(_named(texts)):
        for text, found in zip(group, active_on(store, group, run), strict=True):
            active = found if on is None else on.of_text(found)
            rows = pa.concat_tables([empty, *_pooled(text, active, pool, None)])
            yield len(active.tokens), rows


def _named(texts: Texts) -> Iterator[Named]:
    each: Any
    for number, each in enumerate(texts.items() if isinstance(texts, Mapping) else texts):
        name, text = each if isinstance(each, tuple) and len(each) == 2 else (None, each)
        text = check_text(text, f"text {number} of what encode is given")
        yield Named(number, None if name is None else str(name), text)


def _groups(texts: Iterator[Named]) -> Iterator[list[Named]]:
    """Texts to be run together, in order. The last group may be empty, so there is always one."""
    group: list[Named] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text.text)
        if len(group) == _TEXTS or characters >= _CHARACTERS:
            yield group
            group, characters = [], 0
    yield group


def _table(
    group: list[Named], active: list[ActiveText], pool: Pool | None, k: int | None
) -> pa.Table:
    make = _per_token if pool is None else _pooled
    pieces = [make(*each, pool, k) for each in zip(group, active, strict=True)]
    schema = _SCHEMAS[pool is not None]
    return pa.concat_tables([schema.empty_table(), *chain.from_iterable(pieces)])


_TEXT: dict[str, pa.DataType] = {"text_index": pa.int64(), "text_id": pa.string()}
_TOKEN: dict[str, pa.DataType] = {"token_index": pa.int32(), "token": pa.string()}
_FEATURE: dict[str, pa.DataType] = {
    "sae": pa.string(),
    "feature_id": pa.int64(),
    "activation": pa.float32(),
}
_SCHEMAS = {
    False: pa.schema({**_TEXT, **_TOKEN, **_FEATURE}),
    True: pa.schema({**_TEXT, **_FEATURE, "n_tokens": pa.int32()}),
}


def _per_token(
    text: Named, found: ActiveText, pool: Pool | None, k: int | None
) -> Iterator[pa.Table]:
    """The rows of one text, one per token and feature."""
    if not found.active:
        return
    token, sae, feature, activation = _joined(found)
    order = np.lexsort((feature, sae, token))
    if k is not None:
        order = order[_highest(token[order], activation[order], k)]
    words = pa.array(found.tokens, pa.string())
    places = pa.array(token[order], pa.int32())
    names = [each.sae.name for each in found.active]
    columns = [places, words.take(places), *_features(names, sae, feature, activation, order)]
    yield _of_text(text, columns, _SCHEMAS[False])


def _pooled(text: Named, found: ActiveText, pool: Pool | None, k: int | None) -> Iterator[pa.Table]:
    """The rows of one text, one per feature."""
    if not found.active:
        return
    _, sae, feature, activation = _joined(found)
    order = np.lexsort((feature, sae))
    sae, feature, activation = sae[order], feature[order], activation[order]
    starts = np.flatnonzero(np.diff(feature, prepend=-1) | np.diff(sae, prepend=-1))
    counts = np.diff(starts, append=len(feature))
    reduce = np.maximum if pool == "max" else np.add
    wide: npt.NDArray[np.float64] = activation.astype(np.float64)
    wide = reduce.reduceat(wide, starts) if len(starts) else wide
    values = (wide / len(found.tokens) if pool == "mean" else wide).astype(np.float32)
    sae, feature = sae[starts], feature[starts]
    chosen = np.arange(len(starts))
    if k is not None:
        chosen = _highest(np.zeros(len(starts), np.int64), values, k)
    names = [each.sae.name for each in found.active]
    columns = [
        *_features(names, sae, feature, values, chosen),
        pa.array(counts[chosen], pa.int32()),
    ]
    yield _of_text(text, columns, _SCHEMAS[True])


def _joined(found: ActiveText) -> tuple[npt.NDArray[Any], ...]:
    """(token_index, index of the SAE, feature_id, activation float32), all [n]."""
    return (
        np.concatenate([a.token_index.astype(np.int64) for a in found.active]),
        np.repeat(np.arange(len(found.active)), [len(a.token_index) for a in found.active]),
        np.concatenate([a.feature_id.astype(np.int64) for a in found.active]),
        np.concatenate([a.activation.astype(np.float32) for a in found.active]),
    )


def _highest(
    group: npt.NDArray[np.int64], activation: npt.NDArray[np.float32], k: int
) -> npt.NDArray[np.int64]:
    """The rows of the k highest activations of each group, in their order.

    group: [n] ascending. Ties by row.
    """
    order = np.lexsort((-activation, group))
    first = np.searchsorted(group, group[order])
    return np.sort(order[np.arange(len(order)) - first < k])


def _features(
    names: list[str],
    sae: npt.NDArray[np.int64],
    feature: npt.NDArray[np.int64],
    activation: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
) -> list[pa.Array]:
    named = pa.array(names, pa.string()).take(pa.array(sae[rows]))
    return [named, pa.array(feature[rows], pa.int64()), pa.array(activation[rows], pa.float32())]


def _of_text(text: Named, columns: list[pa.Array], schema: pa.Schema) -> pa.Table:
    n = len(columns[0])
    number = pa.repeat(pa.scalar(text.number, pa.int64()), n)
    name = pa.repeat(pa.scalar(text.id, pa.string()), n)
    return cast("pa.Table", pa.table([number, name, *columns], schema=schema))


QUESTION = Question("encode", Encoded, "fires")
