"""Families of features: duplicates, parents and children, within an SAE and between SAEs.

**Candidates.** Two features of one hook are compared where either is among the other's
`schemas.NEIGHBORS_KEPT` nearest by decoder direction.

**Coverage.** The share of A's active tokens on which B is active too, beyond chance:
``(P(B|A) - P(B)) / (1 - P(B))`` over the tokens that both SAEs recorded, so that a feature that is
active nearly everywhere covers nothing.

**Reconstruction gain.** How much of what a child writes its parent writes already. On the child's
tokens the child contributes ``a_c d_c`` to the reconstruction and the parent ``a_p d_p``, with a
the activations and d the decoder directions. The gain is the share of the child's contribution
that the parent's explains, at the best single scale:
``1 - min_s sum |a_c d_c - s a_p d_p|² / sum |a_c d_c|²``, which is
``cos(d_c, d_p)² (sum a_c a_p)² / (sum a_c² sum a_p²)``, and 0 where s would be negative.

**Relations.** A *duplicate* covers and is covered. A *parent* covers its child and is not covered
by it. Either needs the gain as well: features that fire together for reasons of their own, as that
of a topic and that of a frequent word in it, cover each other without writing the same. Tree SAE
(arXiv:2605.07922) shows that coverage alone gives false parents, and asks for reconstruction too.
HSAE (arXiv:2602.11881) compares a parent's contribution with its children's. Both learn the
hierarchy in training. Here it is read from the store of any SAE.

The parents of rank 1 make a forest: a parent is active on more tokens than its child.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.render.view import AnyColumn, Column, Heading, Part, Table, View
from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.names import parse_feature
from featuredb.store.recorded import CommonTokens, members
from featuredb.store.snapshot import Sae
from featuredb.store.statistics import SUMMARY_COLUMNS
from featuredb.store.store import Store
from queries.answers import Answer, titled
from queries.arguments import check_k, is_whole
from queries.association import ORDER_DECIMALS
from queries.catalog.summaries import TYPES
from queries.coactivation import Fired, fired
from queries.in_python import InPython, elsewhere
from queries.question import Question
from queries.show import (
    counted,
    feature_name,
    fires_on,
    label_table,
    number_column,
    score_column,
)

RELATIONS = ("parent", "child", "duplicate")

MIN_COVERAGE = 0.8
MIN_GAIN = 0.1
MIN_COUNT = 10

_KEPT_BYTES = 1 << 28
"""Bytes of activations that are kept to be compared again."""


@dataclass(frozen=True, repr=False)
class Families(Answer):
    """Relatives of one feature, or of all: `relation` says what the second is to the first.

    Of all features every pair has one row: that of the child with its parent, or of a duplicate
    with the later one.

    Columns: of_sae string, of_feature_id i64 (A), relation string (``parent``: B covers A;
    ``child``: A covers B; ``duplicate``: both), rank i32 (of the relation of A, by gain), sae
    string, feature_id i64 (B), both i64 (tokens on which both are active), p_b_given_a f64,
    p_a_given_b f64 (not corrected for chance), gain f64 (of the child's contribution the share that
    the parent's explains, of duplicates the smaller of the two), cosine f32 (of the decoder
    directions); then density f64, max_activation f32, top_tokens list<string>, promoted_tokens
    list<string>, label string (the preferred one, or null) of B. By A, parents before children
    before duplicates, rank.
    """

    kind: ClassVar[str] = "families"

    feature: str | None
    min_coverage: float
    min_gain: float
    min_count: int
    label: str | None = field(default=None, kw_only=True)
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Of all features, those of A that have one, by name."""

    def view(self) -> View:
        """The relatives under a heading that says what makes one."""
        rule = f" · coverage {self.min_coverage:g}, gain {self.min_gain:g}"
        what = "relative" if self.feature else "pair"
        after = f" · {counted(len(self), what)}{rule}"
        name = titled(self.feature, self.label) if self.feature else "all features"
        heading = Heading("families of ", name, after)
        sections: list[list[Part]] = [[heading, *label_table(self.labels)]]
        return View([*sections, [self._table()]] if len(self) else sections)

    def _table(self) -> Table:
        rows = list(self)
        columns: list[AnyColumn] = []
        if self.feature is None:
            columns.append(Column("feature", [f"{r.of_sae}/{r.of_feature_id}" for r in rows]))
        columns += [
            Column("relation", [row.relation for row in rows]),
            Column("other", [feature_name(row) for row in rows]),
            score_column("gain", rows, "gain"),
            number_column("P(B|A)", rows, "p_b_given_a"),
            number_column("P(A|B)", rows, "p_a_given_b"),
            Column("density", [numbers.density(row.density) for row in rows], right=True),
            fires_on(rows),
        ]
        return Table(columns)


class _Pair(NamedTuple):
    """Two features, by their rows among those of all SAEs, and how they relate.

    covered: A by B, B by A, beyond chance. gains: of A by B, of B by A.
    """

    a: int
    b: int
    cosine: float
    counts: tuple[int, int, int]
    covered: tuple[float, float]
    gains: tuple[float, float]


def families(
    store: Store,
    feature: int | str | None = None,
    k: int | None = None,
    *,
    min_coverage: float = MIN_COVERAGE,
    min_gain: float = MIN_GAIN,
    min_count: int = MIN_COUNT,
) -> Families:
    """See `featuredb.Database.families`.

    Takes a store, not a `Reader`: SQL calls it from inside a connection.
    """
    named = None if feature is None else parse_feature(store.snapshot, feature)
    k = None if k is None else check_k(k)
    for name, share in (("min_coverage", min_coverage), ("min_gain", min_gain)):
        if not isinstance(share, int | float | np.number) or not 0 < share <= 1:
            raise QueryError(f"{name} must be above 0 and at most 1, not {share!r}")
    if not is_whole(min_count) or min_count < 1:
        raise QueryError(f"min_count must be a whole number, at least 1, not {min_count!r}")
    asked = None if named is None else store.features.row(*named)
    # A gain is at most the squared cosine.
    candidates = _candidates(store, float(np.sqrt(min_gain)), asked)
    found = []
    for pair in _measured(store, candidates):
        relation = _relation(pair, min_coverage, min_gain, min_count)
        if relation is not None:
            found += _rows(pair, relation, asked)
    found.sort(key=_order)
    table = _table(store, found if k is None else found[:k])
    labels = {}
    if named is None:
        ofs = zip(*(table.column(n).to_pylist() for n in ("of_sae", "of_feature_id")), strict=True)
        labels = store.labels.named((store.snapshot.sae(sae), number) for sae, number in ofs)
    return Families(
        table,
        feature=None if named is None else f"{named[0].name}/{named[1]}",
        min_coverage=float(min_coverage),
        min_gain=float(min_gain),
        min_count=int(min_count),
        label=None if named is None else store.labels.preferred(*named),
        labels=labels,
    )


def _candidates(store: Store, least: float, asked: int | None) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows a < b with a cosine of at least `least`, ascending; only those of `asked`."""
    path = store.snapshot.derived.neighbors_decoder.path
    rows: list[npt.NDArray[np.int64]] = []
    scores: list[npt.NDArray[np.float32]] = []
    for group in range(len(store.graph_groups(path).first_sae)):
        table = store.files.read(path, [group])
        score = chunk_to_numpy(table.column("score"))
        ends = [_all_rows(store, table, *names) for names in _ENDS]
        chosen = score >= np.float32(least)
        if asked is not None:
            chosen &= (ends[0] == asked) | (ends[1] == asked)
        rows.append(np.sort(np.stack([end[chosen] for end in ends], axis=1), axis=1))
        scores.append(score[chosen])
    if not rows:
        return
    pairs, firsts = np.unique(np.concatenate(rows), axis=0, return_index=True)
    for (a, b), score in zip(pairs.tolist(), np.concatenate(scores)[firsts].tolist(), strict=True):
        yield a, b, score


_ENDS = (("sae", "feature_id"), ("neighbor_sae", "neighbor_id"))


def _all_rows(store: Store, table: pa.Table, sae: str, number: str) -> npt.NDArray[np.int64]:
    """The row of each feature among those of all SAEs, int64 [n]."""
    encoded = table.column(sae).combine_chunks().dictionary_encode()
    named = {s.name: s for s in store.snapshot.saes}
    firsts = [store.features.row(named[name], 0) for name in encoded.dictionary.to_pylist()]
    first = np.array(firsts, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
    result: npt.NDArray[np.int64] = first + chunk_to_numpy(table.column(number))
    return result


def _measured(store: Store, candidates: Iterator[tuple[int, int, float]]) -> Iterator[_Pair]:
    """How the features of each pair relate."""
    active = _Active(store)
    for a, b, cosine in candidates:
        (one, other), common = active.pair(a, b)
        counts = len(one.keys), len(other.keys)
        if not min(counts):
            continue
        in_one, in_other = members(one.keys, other.keys), members(other.keys, one.keys)
        x = one.activation[in_one].astype(np.float64)
        y = other.activation[in_other].astype(np.float64)
        both = len(x)
        covered = tuple(
            _beyond_chance(both / counts[i], counts[1 - i] / common.tokens) for i in (0, 1)
        )
        gains = (
            _gain(cosine, float(x @ y), _square(one.activation), float(y @ y)),
            _gain(cosine, float(x @ y), _square(other.activation), float(x @ x)),
        )
        yield _Pair(a, b, cosine, (both, *counts), (covered[0], covered[1]), gains)


def _square(values: npt.NDArray[np.float32]) -> float:
    wide = values.astype(np.float64)
    return float(wide @ wide)


def _beyond_chance(share: float, chance: float) -> float:
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def _gain(cosine: float, product: float, child: float, parent: float) -> float:
    """product: sum a_c a_p. child, parent: the sums of squares, all over the child's tokens."""
    if cosine * product <= 0 or parent == 0:
        return 0.0
    return float(cosine**2 * product**2 / (child * parent))


def _relation(pair: _Pair, min_coverage: float, min_gain: float, min_count: int) -> str | None:
    """What B is to A."""
    a_covered, b_covered = (share >= min_coverage for share in pair.covered)
    _, a, b = pair.counts
    if a_covered and b_covered:
        return "duplicate" if min(pair.gains) >= min_gain and min(a, b) >= min_count else None
    if a_covered:
        return "parent" if pair.gains[0] >= min_gain and a >= min_count else None
    if b_covered:
        return "child" if pair.gains[1] >= min_gain and b >= min_count else None
    return None


_Row = tuple[int, str, int, tuple[int, float, float], float, float]
"""A, what B is to A, B, (both, P(B|A), P(A|B)), gain, cosine."""

_MIRRORED = {"parent": "child", "child": "parent", "duplicate": "duplicate"}


def _rows(pair: _Pair, relation: str, asked: int | None) -> list[_Row]:
    """The pair as seen from the feature that was asked about, or from the child."""
    both, a, b = pair.counts
    gain = {"parent": pair.gains[0], "child": pair.gains[1], "duplicate": min(pair.gains)}[relation]
    if asked == pair.b or (asked is None and relation == "child"):
        shares = both, both / b, both / a
        return [(pair.b, _MIRRORED[relation], pair.a, shares, gain, pair.cosine)]
    return [(pair.a, relation, pair.b, (both, both / a, both / b), gain, pair.cosine)]


def _order(row: _Row) -> tuple[int, int, float, int]:
    return row[0], RELATIONS.index(row[1]), -round(row[4], ORDER_DECIMALS), row[2]


class _Active:
    """Where features are active, of which the last ones asked for are kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._common: dict[tuple[str, str], CommonTokens] = {}
        self._kept: OrderedDict[int, Fired] = OrderedDict()
        self._bytes = 0
        self._saes = [(store.features.row(sae, 0), sae) for sae in store.snapshot.saes]

    def pair(self, a: int, b: int) -> tuple[tuple[Fired, Fired], CommonTokens]:
        """Where each of two is active, of the tokens that both SAEs recorded."""
        one, other = self.place(a), self.place(b)
        key = one[0].name, other[0].name
        if key not in self._common:
            self._common[key] = CommonTokens(self._store, one[0], other[0])
        common = self._common[key]
        found = [self._all(row) for row in (a, b)]
        if not common.same:
            for i, each in enumerate(found):
                kept = common.kept(each.keys)
                found[i] = Fired(each.keys[kept], each.activation[kept])
        return (found[0], found[1]), common

    def place(self, row: int) -> tuple[Sae, int]:
        """The SAE and the number of a feature."""
        first, sae = next(place for place in reversed(self._saes) if place[0] <= row)
        return sae, row - first

    def _all(self, row: int) -> Fired:
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        sae, number = self.place(row)
        own = self._common.setdefault((sae.name, sae.name), CommonTokens(self._store, sae, sae))
        found = fired(self._store, sae, number, own, with_activations=True)
        self._kept[row] = found
        self._bytes += found.keys.nbytes + found.activation.nbytes
        while self._bytes > _KEPT_BYTES and len(self._kept) > 2:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.keys.nbytes + gone.activation.nbytes
        return found


def _table(store: Store, rows: Sequence[_Row]) -> pa.Table:
    active = _Active(store)
    ofs = [active.place(row[0]) for row in rows]
    others = [active.place(row[2]) for row in rows]
    ranks: list[int] = []
    for i, row in enumerate(rows):
        follows = i > 0 and rows[i - 1][:2] == row[:2]
        ranks.append(ranks[-1] + 1 if follows else 1)
    columns: dict[str, Any] = {
        "of_sae": pa.array([sae.name for sae, _ in ofs], pa.string()),
        "of_feature_id": pa.array([number for _, number in ofs], pa.int64()),
        "relation": pa.array([row[1] for row in rows], pa.string()),
        "rank": pa.array(ranks, pa.int32()),
        "sae": pa.array([sae.name for sae, _ in others], pa.string()),
        "feature_id": pa.array([number for _, number in others], pa.int64()),
        "both": pa.array([row[3][0] for row in rows], pa.int64()),
        "p_b_given_a": pa.array([row[3][1] for row in rows], pa.float64()),
        "p_a_given_b": pa.array([row[3][2] for row in rows], pa.float64()),
        "gain": pa.array([row[4] for row in rows], pa.float64()),
        "cosine": pa.array([row[5] for row in rows], pa.float32()),
    }
    about = store.features.summaries([row[2] for row in rows])
    for name in SUMMARY_COLUMNS:
        columns[name] = about.column(name)
    return pa.table(columns)


IN_PYTHON = InPython(
    elsewhere(
        "families(feature := NULL, k := NULL, min_coverage := "
        f"{MIN_COVERAGE}, min_gain := {MIN_GAIN}, min_count := {MIN_COUNT})",
        table=True,
        about="the parents, children and duplicates of a feature, or of all. Only in Database.sql "
        "and featuredb sql: DuckDB cannot read directions",
    ),
    {
        "feature": "VARCHAR",
        "k": "BIGINT",
        "min_coverage": "DOUBLE",
        "min_gain": "DOUBLE",
        "min_count": "BIGINT",
    },
    {
        "of_sae": "VARCHAR",
        "of_feature_id": "BIGINT",
        "relation": "VARCHAR",
        "rank": "INTEGER",
        "sae": "VARCHAR",
        "feature_id": "BIGINT",
        "both": "BIGINT",
        "p_b_given_a": "DOUBLE",
        "p_a_given_b": "DOUBLE",
        "gain": "DOUBLE",
        "cosine": "FLOAT",
        **TYPES,
    },
)


def families_in_sql(
    store: Store, feature: str | None, k: int | None, coverage: float, gain: float, count: int
) -> Families:
    """What `IN_PYTHON` asks."""
    return families(store, feature, k, min_coverage=coverage, min_gain=gain, min_count=count)


QUESTION = Question("families", Families, "families", (IN_PYTHON.macro,))
