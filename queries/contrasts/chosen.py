"""The two sets of units that a contrast compares: chosen by condition, by id, or as new texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.store.snapshot import Sae
from queries.connection import Reader
from queries.encode import Pool, pooled_texts
from queries.filters import ids_where
from queries.fires import Encode
from queries.pooled import Float32, Int64, Pairs, Pooled, pairs_of
from queries.text_files import read_texts
from queries.units import Units

ALL = "all"
REST = "the rest"
WORDS = (ALL, "rest", REST)
"""What a set may be called instead of a condition: B alone may be the rest."""


@dataclass(frozen=True)
class Chosen:
    """One set: places of stored units, int64 ascending, and texts. called: in words."""

    called: str
    places: Int64
    texts: Sequence[tuple[str | None, str]] = ()

    @property
    def n(self) -> int:
        """How many units it has."""
        return len(self.places) + len(self.texts)


def chosen(reader: Reader, units: Units, given: Any, name: str) -> Chosen:
    """The set that an argument asks for. name: ``A`` or ``B``. Raises `QueryError`."""
    if isinstance(given, str):
        if given.startswith("@"):
            texts = list(read_texts(given[1:]))
            if not texts:
                raise QueryError(f"{name} is empty: {given[1:]} has no texts")
            return Chosen(f"the texts of {given[1:]}", np.empty(0, np.int64), texts)
        if given.strip().lower() == ALL:
            return Chosen(f"all {units.kind}s", np.arange(units.n))
        ids = ids_where(reader, given, units.source, units.id_column, units.tables, name)
        if not len(ids):
            raise QueryError(f"{name} is empty: no {units.kind} satisfies {given.strip()}")
        return Chosen(given.strip(), np.searchsorted(units.ids, np.unique(ids)))
    values = list(given.items() if isinstance(given, Mapping) else _listed(given, name))
    if not values:
        raise QueryError(f"{name} is empty: give ids, texts or a SQL condition")
    if all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values):
        return _by_id(units, values, name)
    pairs = [v if isinstance(v, tuple) and len(v) == 2 else (None, v) for v in values]
    if not all(isinstance(text, str) for _, text in pairs):
        raise QueryError(f"{name} must be a SQL condition, a list of {units.kind} ids, or of texts")
    named = [(None if key is None else str(key), text) for key, text in pairs]
    return Chosen(numbers.plural(len(named), "text"), np.empty(0, np.int64), named)


def _listed(given: Any, name: str) -> Iterable[Any]:
    # A table would be the names of its columns, and bytes numbers.
    if not isinstance(given, Iterable) or isinstance(given, bytes) or hasattr(given, "columns"):
        raise QueryError(
            f"{name} must be a SQL condition, a list of ids or texts, not {type(given).__name__}"
        )
    return given


def _by_id(units: Units, values: Sequence[int], name: str) -> Chosen:
    last = int(units.ids[-1]) if len(units.ids) else -1
    wrong = next((value for value in values if not 0 <= value <= last), None)
    if wrong is not None:
        raise QueryError(f"{name}: there is no {units.kind} {wrong}")
    ids = np.unique(np.array(values, np.int64))
    place = np.searchsorted(units.ids, ids)
    known = np.isin(ids, units.ids)
    if not known.all():
        raise QueryError(f"{name}: there is no {units.kind} {int(ids[~known][0])}")
    return Chosen(numbers.plural(len(ids), units.kind), place)


class NewPairs(NamedTuple):
    """Pairs of texts that are not stored, by feature. All [n]."""

    feature: Int64
    unit: Int64
    value: Float32


@dataclass
class Compared:
    """All units that a contrast may be about: the stored ones, then the new texts.

    length: recorded tokens of each, float64 [n]. in_a, in_b: places. document: of each, -1 for a
    text. texts: those of A, of which there are `n_texts_of_a`, then those of B. saes: whose
    features are compared. notes: what a reader should know.
    """

    units: Units
    saes: Sequence[Sae]
    pool: Pool
    in_a: Int64
    in_b: Int64
    called: tuple[str, str]
    texts: list[tuple[str | None, str]]
    n_texts_of_a: int
    length: npt.NDArray[np.float64]
    new: dict[str, NewPairs]
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """How many units there are."""
        return len(self.length)

    def map(self, reader: Reader, sae: Sae, work: Any) -> Iterator[Any]:
        """`work` of the pairs of each piece of an SAE's features, in their order."""
        new = self.new.get(sae.name)
        stored = self.units.n
        if new is not None and not ((self.in_a < stored).any() or (self.in_b < stored).any()):
            yield work(_merged(None, new, range(sae.d_sae)))
            return
        pooled = Pooled(reader.store, sae, self.units, self.pool)
        if new is None:
            yield from pooled.map(work)
        else:
            yield from pooled.map(
                lambda pairs: work(_merged(pairs, new, range(pairs.first, pairs.end)))
            )


def compared(
    reader: Reader,
    a: Any,
    b: Any,
    units: Units,
    pool: Pool,
    saes: Sequence[Sae],
    encode: Encode,
    *,
    alone: bool = False,
) -> Compared:
    """Choose both sets, or with `alone` only A.

    Raises `QueryError` where one is empty, or there is no rest.
    """
    one = chosen(reader, units, a, "A")
    if isinstance(b, str) and b.strip().lower() in WORDS[1:]:
        b = None
    two = None if b is None else chosen(reader, units, b, "B")
    texts = [*one.texts, *(two.texts if two is not None else ())]
    if texts and units.kind != "document":
        raise QueryError(f"texts are compared as documents: leave unit={units.kind!r} out")
    lengths = np.array([units.lengths(sae) for sae in saes])
    read: npt.NDArray[np.bool_] = np.asarray((lengths > 0).all(axis=0))
    new, new_lengths = _encoded(reader, texts, pool, units, encode)
    made = Compared(
        units,
        saes,
        pool,
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        ("", ""),
        texts,
        len(one.texts),
        np.concatenate([lengths.min(axis=0), new_lengths]),
        {name: pairs for name, pairs in new.items() if name in {s.name for s in saes}},
    )
    for sae in saes if texts else ():
        empty = np.empty(0, np.int64)
        made.new.setdefault(sae.name, NewPairs(empty, empty, np.empty(0, np.float32)))
    kind = units.kind
    lacking = "a recorded token" if units.on is None else f"a token on which {units.on.name} fires"
    in_a = one.places[read[one.places]]
    if alone:
        called, two = (one.called, ""), Chosen("", np.empty(0, np.int64))
    elif two is None:
        rest = np.setdiff1d(np.flatnonzero(read), in_a, assume_unique=True)
        if not len(rest) and len(in_a):
            which = kind if units.on is None else f"{kind} with {lacking}"
            raise QueryError(f"A is every {which}: there is no rest to compare it with, so give B")
        called = (one.called, f"all stored {kind}s" if one.texts else REST)
        two = Chosen(called[1], rest)
    else:
        called = (one.called, two.called)
    in_b = two.places[read[two.places]]
    both = np.intersect1d(in_a, in_b, assume_unique=True)
    if len(both):
        in_b = np.setdiff1d(in_b, both, assume_unique=True)
        made.notes.append(
            f"{numbers.plural(len(both), kind)} of A "
            f"{'is' if len(both) == 1 else 'are'} in B too, and counted in A only"
        )
    firsts = units.n + np.flatnonzero(new_lengths)
    split = units.n + len(one.texts)
    made.in_a = np.concatenate([in_a, firsts[firsts < split]])
    made.in_b = np.concatenate([in_b, firsts[firsts >= split]])
    left_out = one.n + two.n - len(both) - len(made.in_a) - len(made.in_b)
    if left_out:
        made.notes.append(
            f"{numbers.plural(left_out, kind)} without {lacking} "
            f"{'is' if left_out == 1 else 'are'} left out"
        )
    made.called = called
    for name, places in (("A", made.in_a), ("B", made.in_b))[: 1 if alone else 2]:
        if not len(places):
            why = f"no {kind} of it has {lacking}"
            if name == "B" and len(both):
                why = "all of it is in A too"
            raise QueryError(f"{name} is empty: {why}")
    return made


def _encoded(
    reader: Reader,
    texts: Sequence[tuple[str | None, str]],
    pool: Pool,
    units: Units,
    encode: Encode,
) -> tuple[dict[str, NewPairs], npt.NDArray[np.float64]]:
    """The pairs of each SAE, and the tokens of each text."""
    length = np.zeros(len(texts))
    if not texts:
        return {}, length
    tables = []
    for i, (tokens, rows) in enumerate(pooled_texts(reader.store, texts, pool, encode, units.on)):
        length[i] = tokens
        tables.append(rows)
    table = pa.concat_tables(tables)
    names = table.column("sae").combine_chunks()
    result = {}
    for name in names.unique().to_pylist():
        rows = table.filter(pa.array(np.array(names.to_pylist(), object) == name))
        feature, unit, value = (
            rows.column(c).to_numpy() for c in ("feature_id", "text_index", "activation")
        )
        order = np.argsort(feature, kind="stable")
        result[name] = NewPairs(feature[order], unit[order] + units.n, value[order])
    return result, length


def _merged(pairs: Pairs | None, new: NewPairs, features: range) -> Pairs:
    """The pairs of a piece with those of new texts."""
    low, high = np.searchsorted(new.feature, [features.start, features.stop])
    feature = new.feature[low:high] - features.start
    unit, value = new.unit[low:high].astype(np.int32), new.value[low:high]
    if pairs is not None:
        feature = np.concatenate([pairs.feature, feature])
        unit = np.concatenate([pairs.unit, unit])
        value = np.concatenate([pairs.value, value])
    return pairs_of(features, feature, unit, value)
